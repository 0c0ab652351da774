//! Any text as the path of a request. The judge here knows no rule but single steps, done one at a time until none can
//! be done: one escape decoded, compatibility forms and letter case folded, one segment dropped.
//!
//! What must hold: no panic; what is let through has the judge's normal form and, where that form is protected, is
//! spelled so that a reader who does none of the steps reads the same; what is refused as an alias is protected.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use telecomx_gateway::api::{NormalPath, PathPattern, Refusal};
use unicode_normalization::UnicodeNormalization;

const ROOTS: [&str; 4] = ["customer", "employee", "auth", "log"];

/// Spelled otherwise in any letter, they are aliases.
const SPELLED: [&str; 14] = [
    "customer/*/name",
    "auth/login",
    "auth/logout",
    "auth/validateToken",
    "auth/impersonate/*",
    "auth/organizationreseller",
    "employee/*/token",
    "employee/*/token/*",
    "log/changelog/**",
    "log/changeloglite",
    "tools/realtime",
    "tools/realtime/**",
    "porting/*/notify",
    "**/Secret",
];

/// How many of them are known without being configured.
const BUILT_IN: usize = 10;

static BLOCKED: LazyLock<Vec<PathPattern>> = LazyLock::new(|| {
    let pattern = |text: &&str| PathPattern::parse(&format!("/{text}")).expect("the patterns are right");
    SPELLED[BUILT_IN..].iter().map(pattern).collect()
});

fuzz_target!(|data: &[u8]| {
    let Ok(raw) = std::str::from_utf8(data) else { return };
    let decoded = decode(raw.as_bytes().to_vec());
    let parsed = NormalPath::parse(raw, &BLOCKED);
    let Ok(decoded) = String::from_utf8(decoded) else { return assert!(parsed.is_err(), "not UTF-8") };
    let before = fold(raw);
    let normal = settle(before.clone(), true);
    let half = settle(before, false);
    let protected = is_protected(&normal) || is_protected(&half);
    match parsed {
        Ok(path) => {
            assert!(raw.starts_with('/') && !decoded.contains(char::is_control));
            // Folded again: a letter that lower case takes apart may be put together differently.
            let folded: Vec<String> = path.folded().iter().map(|segment| fold(segment)).collect();
            assert_eq!(folded, normal);
            assert_eq!(path.exact(), settle(decoded, true));
            assert!(!protected || is_plain(raw, &normal), "an alias is let through");
        }
        Err(Refusal::AliasPath) => {
            assert!(protected, "refused as an alias of {normal:?}");
            assert!(!is_plainest(raw), "the plain spelling is refused");
        }
        Err(_) => assert!(!is_plainest(raw), "the plain spelling is refused"),
    }
});

/// One escape at a time, until there is none.
fn decode(mut bytes: Vec<u8>) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut from = 0;
    while from + 2 < bytes.len() {
        match (bytes[from], digit(bytes[from + 1]), digit(bytes[from + 2])) {
            (b'%', Some(high), Some(low)) => {
                bytes.splice(from..from + 3, [high << 4 | low]);
                // What was decoded may be the end of another escape, or its middle.
                from = from.saturating_sub(2);
            }
            _ => from += 1,
        }
    }
    bytes
}

/// Decoded and folded until neither changes anything.
fn fold(text: &str) -> String {
    let mut text = text.to_owned();
    loop {
        let decoded = String::from_utf8(decode(text.clone().into_bytes())).unwrap_or_else(|_| text.clone());
        let next = decoded.nfkc().collect::<String>().to_lowercase();
        if next == text {
            return text;
        }
        text = next;
    }
}

/// The segments that are left when what stands for nothing is dropped, one piece at a time; `dots`: dot segments as well.
fn settle(text: String, dots: bool) -> Vec<String> {
    let mut parts: Vec<String> = text.replace('\\', "/").split('/').map(str::to_owned).collect();
    for part in &mut parts {
        part.truncate(part.find(';').unwrap_or(part.len()));
    }
    loop {
        let idle = |part: &String| part.is_empty() || (dots && part == ".");
        if let Some(at) = parts.iter().position(idle) {
            parts.remove(at);
        } else if let Some(at) = parts.iter().position(|part| dots && part == "..") {
            parts.drain(at.saturating_sub(1)..=at);
        } else {
            return parts;
        }
    }
}

fn is_protected(segments: &[String]) -> bool {
    let first = segments.first().map_or("", String::as_str);
    ROOTS.contains(&first)
        || SPELLED[BUILT_IN..].iter().any(|spelled| fits(&spelled.to_lowercase(), &segments.join("/")))
}

/// `pattern` and `path` without the first slash. No segment is empty.
fn fits(pattern: &str, path: &str) -> bool {
    let (head, rest) = pattern.split_once('/').map_or((pattern, None), |(head, rest)| (head, Some(rest)));
    if head == "**" {
        let fits_rest = |path: &str| rest.map_or(path.is_empty(), |rest| fits(rest, path));
        let mut tails = path.match_indices('/').map(|(at, _)| &path[at + 1..]);
        return fits_rest(path) || tails.any(fits_rest) || fits_rest("");
    }
    let (segment, tail) = path.split_once('/').map_or((path, None), |(segment, tail)| (segment, Some(tail)));
    if segment.is_empty() || (head != "*" && head != segment) {
        return false;
    }
    match (rest, tail) {
        (None, None) => true,
        (Some("**"), None) => true,
        (Some(rest), Some(tail)) => fits(rest, tail),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

/// Whether a reader who splits at slashes and decodes once reads the same path, and in the same letters where they matter.
fn is_plain(raw: &str, normal: &[String]) -> bool {
    let Some(path) = raw.strip_prefix('/') else { return false };
    let read: Vec<String> = path.split('/').map(decode_once).collect();
    let same = read.iter().map(|segment| fold(segment)).eq(normal.iter().cloned());
    let root = normal.first() == read.first() || !ROOTS.iter().any(|root| normal.first().is_some_and(|s| s == root));
    let letters = SPELLED
        .iter()
        .all(|spelled| !fits(&spelled.to_lowercase(), &normal.join("/")) || fits(spelled, &read.join("/")));
    let needless = raw.split('%').skip(1).any(|rest| {
        let byte = u8::from_str_radix(rest.get(..2).unwrap_or_default(), 16).unwrap_or(b'%');
        byte.is_ascii_alphanumeric() || b"-._~/\\;%".contains(&byte)
    });
    same && root && letters && !needless && !raw.contains(';')
}

fn decode_once(segment: &str) -> String {
    let mut pieces = segment.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let digits = piece.get(..2).unwrap_or_default();
        bytes.extend(u8::from_str_radix(digits, 16));
        bytes.extend_from_slice(&piece.as_bytes()[digits.len()..]);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Letters and digits between single slashes, in lower case where a word is known in it.
fn is_plainest(raw: &str) -> bool {
    let words = raw.strip_prefix('/').is_some_and(|path| {
        path.split('/').all(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_alphanumeric()))
    });
    words && !raw.contains(|letter: char| letter.is_ascii_uppercase()) && {
        let path = &raw[1..];
        SPELLED.iter().all(|spelled| !fits(&spelled.to_lowercase(), path) || fits(spelled, path))
    }
}
