//! How a path may be spelled, and what it means.
//!
//! A path is judged by its *normal form*: percent-decoded until nothing changes, compatibility forms and letter case
//! folded, `\` read as `/`, repeated slashes, `;parameters`, dot segments and a trailing slash gone. Where the normal form
//! is protected but the path is not spelled plainly, the API might read it as the protected path while a plainer reader
//! does not: such a path is refused, not guessed at.

use percent_encoding::percent_decode_str;
use unicode_normalization::UnicodeNormalization;

use super::error::Refusal;

/// First segments under which only the plain spelling passes.
const PROTECTED_ROOTS: [&str; 4] = ["customer", "employee", "auth", "log"];

/// Paths whose meaning the gateway knows, in the API's own spelling; another letter case of them is an alias.
const KNOWN_PATHS: [&[&str]; 10] = [
    &["customer", "*", "name"],
    &["auth", "login"],
    &["auth", "logout"],
    &["auth", "validateToken"],
    &["auth", "impersonate", "*"],
    &["auth", "organizationreseller"],
    &["employee", "*", "token"],
    &["employee", "*", "token", "*"],
    &["log", "changelog", "**"],
    &["log", "changeloglite"],
];

/// Escapes within escapes deeper than this are refused: no honest path has them.
const MAX_DECODE_ROUNDS: usize = 4;

/// Why a path is refused.
pub type PathError = Refusal;

/// A path pattern: `/`-separated segments, `*` for one, `**` for any number of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern(Vec<String>);

impl PathPattern {
    /// Reads a pattern such as `/porting/*/notify`.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('/').ok_or("a path pattern begins with /")?;
        let segments: Vec<String> = rest.split('/').map(str::to_owned).collect();
        match segments.iter().find(|s| s.is_empty() || (s.contains('*') && *s != "*" && *s != "**")) {
            Some(segment) if segment.is_empty() => Err("a path pattern has no empty segment".into()),
            Some(segment) => Err(format!("`{segment}`: a segment is a word, `*` (one segment) or `**` (any number)")),
            None => Ok(PathPattern(segments)),
        }
    }

    /// Whether the segments are of this pattern; letter case matters.
    pub fn matches<S: AsRef<str>>(&self, segments: &[S]) -> bool {
        matches(&self.0, segments, |a, b| a == b)
    }

    /// Whether some path of this shape is of this pattern, letter case aside; `*` in `shape` is any segment.
    pub fn may_match(&self, shape: &[&str]) -> bool {
        matches(&self.0, shape, |a, b| b == "*" || a.eq_ignore_ascii_case(b))
    }

    fn matches_folded<S: AsRef<str>>(&self, segments: &[S]) -> bool {
        matches(&self.0, segments, |a, b| a.eq_ignore_ascii_case(b))
    }
}

fn matches<P: AsRef<str>, S: AsRef<str>>(pattern: &[P], segments: &[S], same: fn(&str, &str) -> bool) -> bool {
    match (pattern.split_first(), segments.split_first()) {
        (None, None) => true,
        (Some((head, rest)), _) if head.as_ref() == "**" => {
            matches(rest, segments, same)
                || segments.split_first().is_some_and(|(_, tail)| matches(pattern, tail, same))
        }
        (Some((head, rest)), Some((segment, tail))) => {
            (head.as_ref() == "*" || same(head.as_ref(), segment.as_ref())) && matches(rest, tail, same)
        }
        _ => false,
    }
}

/// A path in its normal form, beside its segments as they were spelled.
#[derive(Debug, PartialEq, Eq)]
pub struct NormalPath {
    folded: Vec<String>,
    /// `None`: the same.
    exact: Option<Vec<String>>,
}

impl NormalPath {
    /// Reads a raw path (without query) and refuses aliases of protected paths. `blocked`: patterns that are protected
    /// beside those that the API has.
    ///
    /// # Errors
    /// A broken percent-escape, a control character, bytes that are not UTF-8, an alias of a protected path.
    pub fn parse(raw: &str, blocked: &[PathPattern]) -> Result<Self, PathError> {
        if !raw.starts_with('/') || raw.contains('#') {
            return Err(if raw.contains('#') { Refusal::Fragment } else { Refusal::Malformed });
        }
        let (path, protected) = if is_its_own_normal_form(raw) {
            let folded: Vec<String> = raw.split('/').skip(1).map(str::to_owned).collect();
            let protected = is_protected(&folded, blocked);
            (NormalPath { folded, exact: None }, protected)
        } else {
            Self::fold(raw, blocked)?
        };
        if protected && !(is_plain(raw) && path.is_spelled_as_known(blocked)) {
            return Err(Refusal::AliasPath);
        }
        Ok(path)
    }

    /// Finds the normal form; and whether it, or a half-read form of the path, is protected.
    fn fold(raw: &str, blocked: &[PathPattern]) -> Result<(Self, bool), PathError> {
        check_escapes(raw)?;
        let decoded = decode_fully(raw)?;
        if decoded.chars().any(char::is_control) {
            return Err(Refusal::ControlCharacter);
        }
        let folded_text = fold(&decoded);
        // A wide `%` folds to one that a plainer reader decodes nothing after: no honest path has such an escape.
        if !percent_decode_str(&folded_text).eq(folded_text.bytes()) {
            return Err(Refusal::BrokenEscape);
        }
        let unresolved = segments(&folded_text);
        let folded = resolve_dots(&unresolved);
        let exact = resolve_dots(&segments(&decoded));
        let protected = is_protected(&folded, blocked) || is_protected(&unresolved, blocked);
        Ok((NormalPath { folded, exact: Some(exact) }, protected))
    }

    /// The segments of the normal form, letter case folded.
    pub fn folded(&self) -> &[String] {
        &self.folded
    }

    /// The segments with the letter case that they came in: ids and tokens keep theirs.
    pub fn exact(&self) -> &[String] {
        self.exact.as_ref().unwrap_or(&self.folded)
    }

    /// Whether a pattern holds for this path, letter case aside.
    pub fn is(&self, pattern: &PathPattern) -> bool {
        pattern.matches_folded(&self.folded)
    }

    /// No known path, and no root, is spelled in another letter case, and no compatibility form stands for a delimiter
    /// or for dots.
    fn is_spelled_as_known(&self, blocked: &[PathPattern]) -> bool {
        let exact = self.exact();
        let segments =
            self.exact.is_none() || exact.iter().map(|segment| fold(segment)).eq(self.folded.iter().cloned());
        let known = KNOWN_PATHS.iter().all(|known| {
            !matches(known, &self.folded, |a, b| a.eq_ignore_ascii_case(b)) || matches(known, exact, |a, b| a == b)
        });
        let blocked = blocked.iter().all(|p| !p.matches_folded(&self.folded) || p.matches(exact));
        segments && is_rooted(&self.folded) == is_rooted(exact) && known && blocked
    }
}

/// Whether segments are below a root under which only the plain spelling passes.
fn is_rooted<S: AsRef<str>>(segments: &[S]) -> bool {
    segments.first().is_some_and(|root| PROTECTED_ROOTS.contains(&root.as_ref()))
}

fn is_protected<S: AsRef<str>>(segments: &[S], blocked: &[PathPattern]) -> bool {
    is_rooted(segments) || blocked.iter().any(|pattern| pattern.matches_folded(segments))
}

/// Every `%` is followed by two hexadecimal digits.
fn check_escapes(text: &str) -> Result<(), Refusal> {
    let bytes = text.as_bytes();
    memchr::memchr_iter(b'%', bytes)
        .all(|at| bytes.get(at + 1..at + 3).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit)))
        .then_some(())
        .ok_or(Refusal::BrokenEscape)
}

fn decode_fully(raw: &str) -> Result<String, Refusal> {
    let mut text = raw.to_owned();
    for _ in 0..MAX_DECODE_ROUNDS {
        let decoded = percent_decode_str(&text).decode_utf8().map_err(|_| Refusal::BrokenEscape)?;
        if *decoded == *text {
            return Ok(text);
        }
        text = decoded.into_owned();
    }
    Err(Refusal::BrokenEscape)
}

/// Without compatibility forms and capital letters.
fn fold(text: &str) -> String {
    if text.is_ascii() { text.to_ascii_lowercase() } else { text.nfkc().collect::<String>().to_lowercase() }
}

/// The segments between slashes of either kind, without `;parameters` and without empty ones.
fn segments(text: &str) -> Vec<&str> {
    text.split(['/', '\\'])
        .map(|segment| segment.split(';').next().unwrap_or_default())
        .filter(|segment| !segment.is_empty())
        .collect()
}

fn resolve_dots(segments: &[&str]) -> Vec<String> {
    let mut resolved = Vec::with_capacity(segments.len());
    for &segment in segments {
        match segment {
            "." => {}
            ".." => drop(resolved.pop()),
            _ => resolved.push(segment.to_owned()),
        }
    }
    resolved
}

/// A path of small letters, digits, `-`, `_` and `/` that has no empty segments: nothing of it can be read in another way.
fn is_its_own_normal_form(raw: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'/' | b'-' | b'_');
    raw.bytes().all(allowed) && !raw.contains("//") && !raw.ends_with('/')
}

/// Spelled so that no reader can read it in another way, letter case aside.
fn is_plain(raw: &str) -> bool {
    let bytes = raw.as_bytes();
    let odd = raw.contains(['\\', ';']) || raw.contains("//") || (raw.len() > 1 && raw.ends_with('/'));
    let dots = raw.split('/').any(|segment| segment == "." || segment == "..");
    let needless_escape = memchr::memchr_iter(b'%', bytes).any(|at| {
        let escaped = percent_decode_str(&raw[at..at + 3]).next().unwrap_or_default();
        escaped.is_ascii_alphanumeric() || b"/\\.;%-_~".contains(&escaped)
    });
    !(odd || dots || needless_escape)
}

/// A query: its `token` parameters, and the others.
#[derive(Debug)]
pub struct Query<'a>(Option<&'a str>);

/// Two different `token` parameters.
#[derive(Debug, PartialEq, Eq)]
pub struct QueryError;

impl<'a> Query<'a> {
    /// Takes the raw query, without its `?`.
    ///
    /// # Errors
    /// A broken percent-escape, a control character escaped in a parameter's name or value.
    pub fn parse(raw: Option<&'a str>) -> Result<Self, Refusal> {
        let raw = raw.filter(|raw| !raw.is_empty());
        if let Some(raw) = raw.filter(|raw| raw.contains('%')) {
            check_escapes(raw)?;
            if percent_decode_str(raw).any(|byte| byte == 0) {
                return Err(Refusal::ControlCharacter);
            }
        }
        Ok(Query(raw))
    }

    fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
        self.0.into_iter().flat_map(|raw| raw.split('&')).filter(|whole| !whole.is_empty()).map(|whole| {
            let (name, value) = whole.split_once('=').unwrap_or((whole, ""));
            (whole, name, value)
        })
    }

    fn is_token(name: &str) -> bool {
        percent_decode_str(name).eq("token".bytes())
    }

    /// The value of `token`, percent-decoded.
    ///
    /// # Errors
    /// Two that differ.
    pub fn token(&self) -> Result<Option<Vec<u8>>, QueryError> {
        let mut tokens = self.parameters().filter(|(_, name, _)| Self::is_token(name));
        let Some((_, _, first)) = tokens.next() else { return Ok(None) };
        if tokens.all(|(_, _, other)| percent_decode_str(other).eq(percent_decode_str(first))) {
            Ok(Some(percent_decode_str(first).collect()))
        } else {
            Err(QueryError)
        }
    }

    /// The values of every `token`, percent-decoded.
    pub fn tokens(&self) -> impl Iterator<Item = Vec<u8>> {
        let tokens = self.parameters().filter(|(_, name, _)| Self::is_token(name));
        tokens.map(|(_, _, value)| percent_decode_str(value).collect())
    }

    /// Whether it holds nothing, or nothing but `token`.
    pub fn is_plain(&self) -> bool {
        self.parameters().all(|(_, name, _)| Self::is_token(name))
    }

    /// The query without `token`, as it came otherwise.
    pub fn without_token(&self) -> String {
        let rest: Vec<&str> =
            self.parameters().filter(|(_, name, _)| !Self::is_token(name)).map(|(whole, _, _)| whole).collect();
        rest.join("&")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "73469a52f4fd7f77ec7b28cc";

    fn parse(raw: &str) -> Result<NormalPath, Refusal> {
        let blocked: Vec<PathPattern> = ["/tools/realtime", "/tools/realtime/**", "/porting/*/notify"]
            .map(|p| PathPattern::parse(p).unwrap())
            .into();
        NormalPath::parse(raw, &blocked)
    }

    #[test]
    fn every_alias_of_a_protected_path_is_refused() {
        for alias in [
            "/customer/ID/name/",
            "/customer/ID/name;a=b",
            "/customer/ID/name%2f",
            "/customer/ID/n%61me",
            "/customer/ID/Name",
            "/customer//ID/name",
            "//customer/ID/name",
            "/x/../customer/ID/name",
            "/x/%2e%2e/customer/ID/name",
            "/x/..;/customer/ID/name",
            "/customer\\ID/name",
            "/CUSTOMER/ID/name",
            "/Customer/ID/name",
            "/customer%2fID/name",
            "/customer%252fID/name",
            "/%63ustomer/ID/name",
            "/customer/./ID/name",
            "/customer/ID/name/..",
            "/customer/ID/x/..",
            "/customer;x/ID/name",
            "/customer/%37ID/name",
            "/customer/ID/name%3bx",
            "/%EF%BD%83ustomer/ID/name",
            "/auth/Logout",
            "/auth/validatetoken",
            "/employee/ID/Token/abc",
            "/log//changelog",
            "/Tools/realtime",
            "/tools//realtime/x",
            "/tools/realtime/",
            "/porting/7/%6eotify",
            "/porting/7/Notify",
            "/customer/",
            "/cuſtomer/ID",
            "/customer/ID；x",
            "/customer/ID／users",
            "/customer/ID／‥／‥／employee/1",
            "/auth/．/other",
        ] {
            let alias = alias.replace("ID", ID);
            let alias = alias.replace('ſ', "%C5%BF");
            assert_eq!(parse(&alias), Err(Refusal::AliasPath), "{alias}");
        }
    }

    #[test]
    fn what_is_its_own_normal_form_is_read_as_the_long_way_reads_it() {
        let blocked = [PathPattern::parse("/porting/*/notify").unwrap()];
        for raw in [
            "/a",
            "/a/b-c/d_9",
            "/customer/73469a52f4fd7f77ec7b28cc/name",
            "/customer",
            "/auth/login",
            "/auth/validatetoken",
            "/porting/9/notify",
            "/employee/x/token/y",
        ] {
            assert!(is_its_own_normal_form(raw), "{raw}");
            let (long, protected) = NormalPath::fold(raw, &blocked).unwrap();
            let refused = protected && !(is_plain(raw) && long.is_spelled_as_known(&blocked));
            match NormalPath::parse(raw, &blocked) {
                Ok(short) => {
                    assert!(!refused && (short.folded(), short.exact()) == (long.folded(), long.exact()), "{raw}")
                }
                Err(_) => assert!(refused, "{raw}"),
            }
        }
        for raw in
            ["/", "/a/", "//a", "/a//b", "/A", "/a%20", "/a.b", "/.", "/a/..", "/a;b", "/a\\b", "/æ", "/~a", "/a b"]
        {
            assert!(!is_its_own_normal_form(raw), "{raw}");
        }
    }

    #[test]
    fn the_plain_spelling_and_other_paths_pass() {
        for path in [
            "/customer/ID/name",
            "/customer",
            "/customer/ID/users/S%C3%B8ren%20B",
            "/auth/validateToken",
            "/auth/impersonate/ABCdef",
            "/employee/ID/token/AbC.d-E_f~1",
            "/tools/realtime",
            "/other//x/",
            "/Other/%41",
            "/x;y=1/../z",
            "/",
            "/customer/ID/name.json",
            "/customers/ID/name",
            "/socket.io/",
            "/customer/ID/other%20name",
        ] {
            let path = path.replace("ID", ID);
            assert!(parse(&path).is_ok(), "{path}: {:?}", parse(&path));
        }
        assert_eq!(parse("/employee/1/token/AbC").unwrap().exact()[3], "AbC");
    }

    #[test]
    fn broken_escapes_and_control_characters_are_refused_everywhere() {
        for (path, refusal) in [
            ("/x%", Refusal::BrokenEscape),
            ("/x%2", Refusal::BrokenEscape),
            ("/x%zz", Refusal::BrokenEscape),
            ("/x%00", Refusal::ControlCharacter),
            ("/x%0a", Refusal::ControlCharacter),
            ("/x%2500", Refusal::ControlCharacter),
            ("/x%c0%af", Refusal::BrokenEscape),
            ("/x#y", Refusal::Fragment),
            ("x", Refusal::Malformed),
            ("/%25252525252541", Refusal::BrokenEscape),
            ("/％63ustomer", Refusal::BrokenEscape),
            ("/x/%EF%BC%85２e./y", Refusal::BrokenEscape),
        ] {
            assert_eq!(parse(path), Err(refusal), "{path}");
        }
    }

    #[test]
    fn a_query_knows_its_token() {
        let query = |raw| Query::parse(Some(raw)).unwrap();
        assert_eq!(query("token=a%2Bb").token(), Ok(Some(b"a+b".to_vec())));
        assert_eq!(query("%74oken=a&token=%61").token(), Ok(Some(b"a".to_vec())));
        assert_eq!(query("token=a&token=b").token(), Err(QueryError));
        assert!(query("token=a").is_plain() && query("").is_plain() && !query("token=a&x").is_plain());
        assert_eq!(query("a=1&token=x&b=%20").without_token(), "a=1&b=%20");
        assert!(Query::parse(Some("a=%")).is_err() && Query::parse(Some("a=%00")).is_err());
    }
}
