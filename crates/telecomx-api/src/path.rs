//! Readings of a path, and paths that are refused because their readings differ.
//!
//! The API, or a proxy in front of it, may read a path in another way than the gateway: split it
//! before or after decoding, end it at a decoded `?`, take `\` for `/`, drop `;parameters`, dot
//! segments, empty segments, blanks and invisible characters, or ignore letter case. A path that is
//! *protected* in any reading must be spelled so that all readings agree; otherwise it is refused.
//! Every other path passes unchanged. `readings.rs` enumerates the readings.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_decode_str;

use super::error::Refusal;
use super::folding::{Folded, OTHER_LETTER, fold};
use super::ids::CustomerId;
use super::pattern_word::word_is;
use super::readings::{Readings, Spelling, check_escapes};

/// Maximum length of a path in bytes. The API's longest path, with a token in it, has about 4,150;
/// longer ones would only make reading them expensive.
pub const MAX_PATH: usize = 4 << 10;

/// First segments below which only the plain spelling passes.
const PROTECTED_ROOTS: [&str; 4] = ["customer", "employee", "auth", "log"];

/// Paths with a meaning for the gateway, in the API's spelling; another letter case is an alias.
const KNOWN_PATHS: [KnownPath; 12] = [
    KnownPath::new(&["customer", "*", "name"]),
    KnownPath::new(&["auth", "login"]),
    KnownPath::new(&["auth", "logout"]),
    KnownPath::new(&["auth", "validateToken"]),
    KnownPath::new(&["auth", "impersonate", "*"]),
    KnownPath::new(&["auth", "organizationreseller"]),
    KnownPath::new(&["employee", "*", "token"]),
    KnownPath::new(&["employee", "*", "token", "*"]),
    KnownPath::new(&["log", "changelog", "**"]),
    KnownPath::new(&["log", "changeloglite"]),
    KnownPath::new(&["integration", "**", "customer", "*"]),
    KnownPath::new(&["integration", "**", "customer", "*", "sync"]),
];

/// Those that are not below a protected root: paths that change a customer.
const CHANGING: usize = 10;

/// Reason why a path is refused.
pub type PathError = Refusal;

/// A set of first segments, which may have members that were not added.
///
/// Each request is compared with dozens of patterns, few of which begin like its path. The bit of a
/// segment depends on its length and first character without letter case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FirstSegments(u64);

impl FirstSegments {
    const ALL: Self = FirstSegments(u64::MAX);

    /// The set of one segment, and of all that equal it except for letter case.
    const fn of(segment: &str) -> Self {
        let bytes = segment.as_bytes();
        let first = if bytes.is_empty() { 0 } else { bytes[0].to_ascii_lowercase() };
        FirstSegments(1 << ((bytes.len() ^ first as usize) % 64))
    }

    /// The first segments that a pattern's first word can match.
    const fn of_word(word: &str) -> Self {
        match word.as_bytes() {
            [] | [.., b'*'] => Self::ALL,
            _ => Self::of(word),
        }
    }

    const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A path of the API, and the first segments that it can have.
struct KnownPath {
    words: &'static [&'static str],
    first: FirstSegments,
}

impl KnownPath {
    const fn new(words: &'static [&'static str]) -> Self {
        KnownPath { words, first: FirstSegments::of_word(words[0]) }
    }
}

/// A path pattern: `/`-separated segments, `*` for one, `**` for any number of them, `name.*` for
/// a name with any suffix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern {
    words: Vec<String>,
    first: FirstSegments,
}

impl PathPattern {
    /// Parses a pattern such as `/porting/*/notify`.
    ///
    /// # Errors
    /// The mistake in the pattern.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = text.strip_prefix('/').ok_or("does not start with `/`")?;
        rest.split('/').try_for_each(check_segment)?;
        let words: Vec<String> = rest.split('/').map(str::to_owned).collect();
        let first = words.first().map_or(FirstSegments::ALL, |word| FirstSegments::of_word(word));
        Ok(PathPattern { words, first })
    }

    /// Whether the segments match, including letter case.
    pub fn matches<S: AsRef<str>>(&self, segments: &[S]) -> bool {
        matches(&self.words, segments, &|a, b: &S| word_is(a, b.as_ref(), str::eq))
    }

    /// Whether a path of this shape can match, ignoring letter case; `*` in `shape` is any segment.
    pub fn may_match(&self, shape: &[&str]) -> bool {
        matches(&self.words, shape, &|a, b| *b == "*" || word_is(a, b, str::eq_ignore_ascii_case))
    }

    /// Whether the pattern begins with `*` or `**`, so that it names no particular place.
    fn begins_with_wildcard(&self) -> bool {
        self.words.first().is_some_and(|segment| segment.starts_with('*'))
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words.iter().try_for_each(|segment| write!(f, "/{segment}"))
    }
}

/// Checks a segment of a pattern: `*`, `**`, a name, or `name.*`. A segment that no path in normal
/// form has is refused, because the pattern would never match.
fn check_segment(segment: &str) -> Result<(), &'static str> {
    match segment {
        "*" | "**" => return Ok(()),
        "" => return Err("has an empty segment or a trailing slash"),
        "." | ".." => return Err("has a dot segment, which a path in normal form cannot contain"),
        _ => {}
    }
    match segment.strip_suffix(".*").unwrap_or(segment) {
        "" => Err("has a segment `.*` without a name before it"),
        name if name.contains('*') => Err("mixes `*` with other characters in one segment"),
        name if !name.bytes().all(is_segment_byte) => {
            Err("contains a character that a path in normal form cannot contain")
        }
        _ => Ok(()),
    }
}

/// RFC 3986 `pchar` without escapes and without `;`, which starts parameters.
fn is_segment_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()+,=:@".contains(&byte)
}

/// Whether segments match a pattern, ignoring letter case.
fn matches_folded<P: AsRef<str>>(pattern: &[P], segments: &[Cow<'_, str>]) -> bool {
    matches(pattern, segments, &|a, b: &Cow<'_, str>| word_is(a, b, str::eq_ignore_ascii_case))
}

/// Whether the segments match the pattern. Two positions for backtracking bound the work by the
/// product of the two lengths. `same` compares a pattern word with a segment.
fn matches<P: AsRef<str>, S>(
    pattern: &[P],
    segments: &[S],
    same: &impl Fn(&str, &S) -> bool,
) -> bool {
    let (mut at, mut segment) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    loop {
        match pattern.get(at).map(AsRef::as_ref) {
            Some("**") => {
                at += 1;
                back = Some((at, segment));
                continue;
            }
            Some(word) if segments.get(segment).is_some_and(|segment| same(word, segment)) => {
                (at, segment) = (at + 1, segment + 1);
                continue;
            }
            None if segment == segments.len() => return true,
            _ => {}
        }
        match back {
            Some((after, from)) if from < segments.len() => {
                back = Some((after, from + 1));
                (at, segment) = (after, from + 1);
            }
            _ => return false,
        }
    }
}

/// Paths on which only the plain spelling passes, in addition to those of the API.
#[derive(Clone, Copy, Default)]
pub struct Protected<'a> {
    /// Blocked paths.
    pub blocked: &'a [PathPattern],
    /// Paths of redact rules.
    pub redacted: &'a [PathPattern],
}

impl<'a> Protected<'a> {
    /// Patterns that name a particular place: any other spelling of such a path is refused.
    fn places(self) -> impl Iterator<Item = &'a PathPattern> {
        let named = self.redacted.iter().filter(|pattern| !pattern.begins_with_wildcard());
        self.blocked.iter().chain(named)
    }

    /// Redact rules such as `/**` that name no place: all readings of a path must match, or none.
    fn everywhere(self) -> impl Iterator<Item = &'a PathPattern> {
        self.redacted.iter().filter(|pattern| pattern.begins_with_wildcard())
    }
}

/// A path in its normal form, with its segments as they were spelled.
#[derive(Debug, PartialEq, Eq)]
pub struct NormalPath<'p> {
    folded: Vec<Cow<'p, str>>,
    /// `None`: equal to `folded`.
    exact: Option<Vec<Cow<'p, str>>>,
    /// The first of `folded`.
    first: FirstSegments,
}

impl<'p> NormalPath<'p> {
    fn new(folded: Vec<Cow<'p, str>>, exact: Option<Vec<Cow<'p, str>>>) -> Self {
        let first = folded.first().map_or(FirstSegments::ALL, |segment| FirstSegments::of(segment));
        NormalPath { folded, exact, first }
    }

    fn from_readings(readings: &Readings) -> Self {
        let owned = |segments: Vec<String>| segments.into_iter().map(Cow::Owned).collect();
        let (folded, exact) = readings.normal_form();
        NormalPath::new(owned(folded), Some(owned(exact)))
    }

    /// Parses a raw path without query, and refuses it if one reading is protected and another
    /// differs.
    ///
    /// # Errors
    /// An invalid percent-escape, a control character, bytes that are not UTF-8, a path that is too
    /// long, an alias of a protected path.
    pub fn parse(raw: &'p str, protected: Protected<'_>) -> Result<Self, PathError> {
        if !raw.starts_with('/') || raw.contains('#') {
            return Err(if raw.contains('#') { Refusal::Fragment } else { Refusal::Malformed });
        }
        if raw.len() > MAX_PATH {
            return Err(Refusal::PathTooLong);
        }
        if is_its_own_normal_form(raw) {
            let mut folded = Vec::with_capacity(4);
            folded.extend(raw[1..].split('/').map(Cow::Borrowed));
            let path = NormalPath::new(folded, None);
            return if path.is_spelled_as_known(protected) {
                Ok(path)
            } else {
                Err(Refusal::AliasPath)
            };
        }
        let readings = Readings::from_path(raw)?;
        let path = NormalPath::from_readings(&readings);
        path.judge(raw, &readings, protected)?;
        Ok(path)
    }

    /// Refuses the path if a reading is protected and the readings differ.
    fn judge(
        &self,
        raw: &str,
        readings: &Readings,
        protected: Protected<'_>,
    ) -> Result<(), PathError> {
        let mut in_a_place = false;
        let rules: Vec<&PathPattern> = protected.everywhere().collect();
        let mut matched = vec![(false, true); rules.len()];
        let is = |word: &str, segment: &Spelling<'_>| segment.is(word);
        readings.for_each(|segments| {
            in_a_place = in_a_place
                || is_rooted(segments)
                || KNOWN_PATHS[CHANGING..].iter().any(|known| matches(known.words, segments, &is))
                || protected.places().any(|pattern| matches(&pattern.words, segments, &is));
            for (rule, (any, all)) in rules.iter().zip(&mut matched) {
                let matches = matches(&rule.words, segments, &is);
                (*any, *all) = (*any || matches, *all && matches);
            }
        });
        let agree = matched.iter().all(|(any, all)| any == all);
        let plain = !in_a_place || (is_plain(raw) && self.segments_are_plain());
        if agree && plain && self.is_spelled_as_known(protected) {
            Ok(())
        } else {
            Err(Refusal::AliasPath)
        }
    }

    /// Returns the segments of the normal form with folded letter case.
    pub fn folded(&self) -> &[Cow<'p, str>] {
        &self.folded
    }

    /// Returns the segments with their original letter case, for ids and tokens.
    pub fn exact(&self) -> &[Cow<'p, str>] {
        self.exact.as_ref().unwrap_or(&self.folded)
    }

    /// Whether a pattern matches this path, ignoring letter case.
    pub fn is(&self, pattern: &PathPattern) -> bool {
        pattern.first.meets(self.first) && matches_folded(&pattern.words, &self.folded)
    }

    /// Whether the path is spelled like every known path, root and pattern that it matches.
    fn is_spelled_as_known(&self, protected: Protected<'_>) -> bool {
        let exact = self.exact();
        let known = KNOWN_PATHS.iter().all(|known| {
            !known.first.meets(self.first)
                || !matches_folded(known.words, &self.folded)
                || matches(known.words, exact, &|a, b: &Cow<'_, str>| word_is(a, b, str::eq))
        });
        let is_right = |pattern: &PathPattern| !self.is(pattern) || pattern.matches(exact);
        is_rooted(&self.folded) == is_rooted(exact)
            && known
            && protected.blocked.iter().all(is_right)
            && protected.redacted.iter().all(is_right)
    }

    /// Whether no segment has a character that a reader drops or takes for a delimiter.
    fn segments_are_plain(&self) -> bool {
        self.exact().len() == self.folded.len()
            && self.exact().iter().all(|segment| is_plain_segment(segment))
    }
}

/// Whether segments are below a root that requires the plain spelling.
fn is_rooted<S: AsRef<str>>(segments: &[S]) -> bool {
    segments.first().is_some_and(|root| PROTECTED_ROOTS.contains(&root.as_ref()))
}

/// Whether a decoded segment has one reading, ignoring letter case and compatibility forms.
fn is_plain_segment(segment: &str) -> bool {
    if segment.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return true;
    }
    let is_blank = |character: char| fold(character) == Folded::Blank;
    if segment.starts_with(is_blank) || segment.ends_with(is_blank) {
        return false;
    }
    let (mut dots, mut dropped) = (true, false);
    for character in segment.chars() {
        match fold(character) {
            Folded::Invisible => return false,
            // Dots in a row are a dot segment in some form.
            Folded::Text(text) => {
                if text.iter().any(|byte| b"/\\;%?#".contains(byte)) {
                    return false;
                }
                dots = dots && text.iter().all(|byte| *byte == b'.');
            }
            Folded::Mark | Folded::Blank => dropped = true,
            Folded::Letter | Folded::Symbol => dots = false,
        }
    }
    // A blank in the middle, or a combining mark, matters where the rest is an id.
    let is_dropped = |character: char| matches!(fold(character), Folded::Mark | Folded::Blank);
    let is_id = || CustomerId::parse(segment.replace(is_dropped, "").as_bytes()).is_some();
    !(dots || (dropped && is_id()))
}

/// Whether a path consists of lower-case letters, digits, `-`, `_` and `/` without empty segments,
/// so that it has one reading.
fn is_its_own_normal_form(raw: &str) -> bool {
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'/' | b'-' | b'_');
    let mut before = 0;
    let is_plain = raw.bytes().all(|byte| {
        let is_empty_segment = byte == b'/' && before == b'/';
        before = byte;
        allowed(byte) && !is_empty_segment
    });
    is_plain && before != b'/'
}

/// Whether the raw path has no second spelling of a delimiter, a dot segment or a plain character.
fn is_plain(raw: &str) -> bool {
    let bytes = raw.as_bytes();
    let odd =
        raw.contains(['\\', ';']) || raw.contains("//") || (raw.len() > 1 && raw.ends_with('/'));
    let dots = raw.split('/').any(|segment| segment == "." || segment == "..");
    let needless_escape = memchr::memchr_iter(b'%', bytes).any(|at| {
        let escaped = percent_decode_str(&raw[at..at + 3]).next().unwrap_or_default();
        escaped.is_ascii_alphanumeric() || b"/\\.;%-_~?#".contains(&escaped)
    });
    !(odd || dots || needless_escape)
}

/// A query, with its `token` parameters and the others.
#[derive(Debug)]
pub struct Query<'a>(Option<&'a str>);

/// Two different `token` parameters.
#[derive(Debug, PartialEq, Eq)]
pub struct QueryError;

impl<'a> Query<'a> {
    /// Parses and validates a raw query without its `?`.
    ///
    /// # Errors
    /// See [`Query::validate`].
    pub fn parse(raw: Option<&'a str>) -> Result<Self, Refusal> {
        let query = Self::unvalidated(raw);
        query.validate().map(|()| query)
    }

    /// Accepts the raw query of a route on which only the API interprets it.
    pub fn unvalidated(raw: Option<&'a str>) -> Self {
        Query(raw.filter(|raw| !raw.is_empty()))
    }

    /// Checks a query that the gateway interprets.
    ///
    /// # Errors
    /// An invalid percent-escape, or an escaped control character in the name or value of a
    /// parameter.
    pub fn validate(&self) -> Result<(), Refusal> {
        let Some(raw) = self.0.filter(|raw| raw.contains('%')) else { return Ok(()) };
        check_escapes(raw)?;
        if percent_decode_str(raw).any(|byte| byte == 0) {
            return Err(Refusal::ControlCharacter);
        }
        Ok(())
    }

    fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str, &'a str)> {
        self.0.into_iter().flat_map(|raw| raw.split('&')).filter(|whole| !whole.is_empty()).map(
            |whole| {
                let (name, value) = whole.split_once('=').unwrap_or((whole, ""));
                (whole, name, value)
            },
        )
    }

    fn is_token(name: &str) -> bool {
        percent_decode_str(name).eq("token".bytes())
    }

    /// Returns the percent-decoded value of `token`.
    ///
    /// # Errors
    /// Two different values.
    pub fn token(&self) -> Result<Option<Vec<u8>>, QueryError> {
        let mut tokens = self.parameters().filter(|(_, name, _)| Self::is_token(name));
        let Some((_, _, first)) = tokens.next() else { return Ok(None) };
        if tokens.all(|(_, _, other)| percent_decode_str(other).eq(percent_decode_str(first))) {
            Ok(Some(percent_decode_str(first).collect()))
        } else {
            Err(QueryError)
        }
    }

    /// Returns the percent-decoded values of all parameters whose name a reader could take for
    /// `token`.
    pub fn token_aliases(&self) -> impl Iterator<Item = Vec<u8>> {
        // Some readers take `;` for a delimiter.
        let parts = self.parameters().flat_map(|(whole, ..)| {
            let more = whole.split(';').filter(move |part| part.len() < whole.len());
            std::iter::once(whole).chain(more)
        });
        let values = parts
            .filter(|part| is_token_alias(part))
            .map(|part| part.split_once('=').unwrap_or((part, "")).1);
        values.map(|value| percent_decode_str(value).collect())
    }

    /// Whether the query is empty or contains only `token`.
    pub fn is_plain(&self) -> bool {
        self.parameters().all(|(_, name, _)| Self::is_token(name))
    }

    /// Returns the query without parameters whose name a reader could take for `token`, otherwise
    /// unchanged. The first `token` with a value remains if `keep_first`.
    pub fn without_tokens(&self, keep_first: bool) -> String {
        let mut kept = !keep_first;
        let mut rest: Vec<Cow<'_, str>> = Vec::new();
        for (whole, name, value) in self.parameters() {
            if !kept && Self::is_token(name) && !value.is_empty() {
                kept = true;
                rest.push(Cow::Borrowed(whole));
            } else if is_split_alias(whole) {
                continue;
            } else if whole.split(';').any(is_token_alias) {
                let parts: Vec<&str> =
                    whole.split(';').filter(|part| !is_token_alias(part)).collect();
                let parts = parts.join(";");
                if !parts.is_empty() && !is_split_alias(&parts) {
                    rest.push(Cow::Owned(parts));
                }
            } else {
                rest.push(Cow::Borrowed(whole));
            }
        }
        rest.join("&")
    }
}

/// Whether a reader could take a parameter's name for `token`: decoded, in any letter case, without
/// brackets (`token[]`, `[token]`), blanks and invisible characters.
fn is_token_alias(parameter: &str) -> bool {
    /// No legitimate name is escaped more often.
    const DECODE_ROUNDS: usize = 4;
    let mut name = parameter.split_once('=').map_or(parameter, |(name, _)| name).to_owned();
    for _ in 0..DECODE_ROUNDS {
        let decoded = percent_decode_str(&name).decode_utf8_lossy();
        if *decoded == *name {
            break;
        }
        name = decoded.into_owned();
    }
    let mut word = Vec::new();
    for character in name.chars() {
        if matches!(character, '[' | ']' | '.') {
            if word.is_empty() {
                continue;
            }
            break;
        }
        match fold(character) {
            Folded::Text(text) => word.extend(
                text.iter().filter(|byte| byte.is_ascii_alphanumeric() || !byte.is_ascii()),
            ),
            Folded::Letter => word.push(OTHER_LETTER),
            Folded::Symbol | Folded::Mark | Folded::Invisible | Folded::Blank => {}
        }
    }
    word == b"token"
}

/// Whether a parameter's name has a `;` and a reader that does not take it for a delimiter could
/// take the name for `token`.
fn is_split_alias(parameter: &str) -> bool {
    let name = parameter.split_once('=').map_or(parameter, |(name, _)| name);
    name.contains(';') && is_token_alias(parameter)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "73469a52f4fd7f77ec7b28cc";

    fn parse(raw: &str) -> Result<NormalPath<'_>, Refusal> {
        let pattern = |text: &str| PathPattern::parse(text).unwrap();
        let blocked = ["/tools/realtime", "/tools/realtime/**", "/porting/*/notify"].map(pattern);
        let redacted = ["/reseller/*/customers"].map(pattern);
        NormalPath::parse(raw, Protected { blocked: &blocked, redacted: &redacted })
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
    fn plain_path_reads_like_the_general_case() {
        let blocked = [PathPattern::parse("/porting/*/notify").unwrap()];
        let protected = Protected { blocked: &blocked, redacted: &[] };
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
            let readings = Readings::from_path(raw).unwrap();
            let long = NormalPath::from_readings(&readings);
            let refused = long.judge(raw, &readings, protected);
            match NormalPath::parse(raw, protected) {
                Ok(short) => {
                    assert_eq!(refused, Ok(()), "{raw}");
                    assert_eq!((short.folded(), short.exact()), (long.folded(), long.exact()));
                }
                Err(refusal) => assert_eq!(refused, Err(refusal), "{raw}"),
            }
        }
        for raw in [
            "/", "/a/", "//a", "/a//b", "/A", "/a%20", "/a.b", "/.", "/a/..", "/a;b", "/a\\b",
            "/æ", "/~a", "/a b",
        ] {
            assert!(!is_its_own_normal_form(raw), "{raw}");
        }
    }

    #[test]
    fn path_with_two_readings_of_which_one_is_protected_is_refused() {
        for alias in [
            // Split on raw slashes, and decoded afterwards.
            "/porting/7%2Fx/notify",
            "/porting/7%252Fx/notify",
            "/porting/7%5Cx/notify",
            "/porting/7\\x/notify",
            "/porting/%2e/notify",
            "/porting/./notify",
            "/porting/x/../7/notify",
            "/porting/%2e%2e/x/../notify",
            "/porting/;x/notify",
            "/;a%2Fb/tools%2Frealtime",
            "/customer\\;x",
            "/porting/%E2%80%8B/notify",
            "/porting/7%EF%BC%8Fx/notify",
            "/reseller/7%2Fx/customers",
            "/reseller/7/customers/",
            "/reseller/7/x/../customers",
            "/reseller//7/customers",
            "/RESELLER/7/customers",
            "/integration/also/customer/ID%2F/sync",
            "/integration/also/x%2Fcustomer/ID/sync",
            // Ended at a decoded delimiter.
            "/tools/realtime%3F",
            "/tools/realtime%23x/y",
            "/tools/realtime%3Fx/..",
            "/x%3F/../tools/realtime%3Fy",
            "/tools/realtime/x/..%3F",
            "/reseller/a%253Fb/customers%3F",
            "/porting/7/%2e%2e/%252e/notify",
            "/porting/7/%2e%2e/%EF%BC%8E/notify",
            "/reseller/a%23b/customers%3Fx",
            "/reseller/..%EF%BC%9Fx/customers%23/y",
            "/tools/realtime%EF%BC%9F",
            "/reseller/7/customers%3Fa=b",
            "/customer/ID%3Fx",
            "/auth/logout%23",
            // Blanks and invisible characters.
            "/tools/realtime%20",
            "/tools/%20realtime",
            "/tools%20/realtime",
            "/tools/real%E2%80%8Btime",
            "/tools/realtime%EF%BB%BF",
            "/tools/realtime%C2%A0",
            "/tools/realtime%E3%80%80",
            "/customer%20/ID",
            "/customer/ID%20",
            "/customer/73469a52f4%20fd7f77ec7b28cc",
            "/customer/%CC%81ID/name",
            "/auth/logout%E2%81%A0",
            "/%E2%80%8B/customer/ID",
            // Letters that fold to ASCII.
            "/tools/realt%C4%B1me",
            "/auth/val%C4%B1dateToken",
            "/employee/ID/to%E2%84%AAen/x",
            "/tools/rea%E2%84%93time",
            "/custome%CC%81r/ID",
        ] {
            let alias = alias.replace("ID", ID);
            assert_eq!(parse(&alias), Err(Refusal::AliasPath), "{alias}");
        }
    }

    #[test]
    fn name_with_a_suffix_is_matched_by_its_pattern() {
        let pattern = PathPattern::parse("/porting/*/notify.*/**").unwrap();
        for (path, is) in [
            ("/porting/7/notify.json", true),
            ("/porting/7/notify.", true),
            ("/porting/7/notify.json/x", true),
            ("/porting/7/notify", false),
            ("/porting/7/notifyx.json", false),
            ("/porting/7/æøå", false),
        ] {
            let segments: Vec<&str> = path.split('/').skip(1).collect();
            assert_eq!(pattern.matches(&segments), is, "{path}");
        }
        for wrong in ["/.*", "/a*", "/a*.*", "/***", "/a.**", "//"] {
            assert!(PathPattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rule_for_every_path_refuses_no_spelling() {
        let everywhere = ["/**"].map(|text| PathPattern::parse(text).unwrap());
        let protected = Protected { blocked: &[], redacted: &everywhere };
        for path in
            ["/", "/x/", "/x//y", "/x%2Fy", "/x/../y", "/x;y/z", "/%41%20", "/x%3Fy", "/X\\y"]
        {
            assert!(NormalPath::parse(path, protected).is_ok(), "{path}");
        }
        let somewhere = ["/*/secrets"].map(|text| PathPattern::parse(text).unwrap());
        let protected = Protected { blocked: &[], redacted: &somewhere };
        for (path, passes) in [
            ("/x/secrets", true),
            ("/x%2Fy/secrets", false),
            ("/x/secrets/", false),
            ("/x/y/", true),
        ] {
            assert_eq!(NormalPath::parse(path, protected).is_ok(), passes, "{path}");
        }
    }

    #[test]
    fn path_longer_than_the_bound_is_refused() {
        assert!(parse(&format!("/{}", "x".repeat(MAX_PATH - 1))).is_ok());
        assert_eq!(parse(&format!("/{}", "x".repeat(MAX_PATH))), Err(Refusal::PathTooLong));
        // Every kind of ambiguity at once.
        let expensive = "/a%2Fb\\c;d%3Fe//.%2e/../%E2%80%8B/%255C/%252F".repeat(60);
        assert_eq!(parse(&expensive), Err(Refusal::AliasPath));
    }

    #[test]
    fn plain_spelling_and_other_paths_pass() {
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
            "/customer/ID/note/%F0%9F%91%8D%20%E2%82%AC",
            "/customer/ID/note/%E0%A4%B9%E0%A4%BF%E0%A4%A8",
            "/reseller/S%C3%B8ren%20B/customers",
            "/reseller/7%2Fx/other",
            "/files/a%2Fcustomer%2Fb",
            "/docs/customer/../readme",
            "/search/what%3F",
            "/x/%E2%80%8B",
        ] {
            let path = path.replace("ID", ID);
            assert!(parse(&path).is_ok(), "{path}: {:?}", parse(&path));
        }
        assert_eq!(parse("/employee/1/token/AbC").unwrap().exact()[3], "AbC");
    }

    #[test]
    fn invalid_escapes_and_control_characters_are_refused() {
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
    fn query_returns_its_token() {
        let query = |raw| Query::parse(Some(raw)).unwrap();
        assert_eq!(query("token=a%2Bb").token(), Ok(Some(b"a+b".to_vec())));
        assert_eq!(query("%74oken=a&token=%61").token(), Ok(Some(b"a".to_vec())));
        assert_eq!(query("token=a&token=b").token(), Err(QueryError));
        assert!(
            query("token=a").is_plain() && query("").is_plain() && !query("token=a&x").is_plain()
        );
        assert_eq!(query("a=1&token=x&b=%20").without_tokens(false), "a=1&b=%20");
        assert_eq!(
            query("a=1&token=&token=x&token=x&b=%20").without_tokens(true),
            "a=1&token=x&b=%20"
        );
        assert_eq!(Query::unvalidated(Some("q=100%")).validate(), Err(Refusal::BrokenEscape));
        assert!(Query::parse(Some("a=%")).is_err() && Query::parse(Some("a=%00")).is_err());
    }

    #[test]
    fn every_segment_that_a_word_matches_is_in_its_set() {
        let words = ["customer", "Auth", "a.b", "name.*", "*", "**", "-", "~1"];
        for word in words {
            for segment in
                ["customer", "CUSTOMER", "auth", "A.B", "name.json", "Name.", "-", "~1", ""]
            {
                let is_matched = matches_folded(&[word], &[Cow::Borrowed(segment)]);
                let meets = FirstSegments::of_word(word).meets(FirstSegments::of(segment));
                assert!(meets || !is_matched, "{word} {segment}");
            }
        }
        let path = NormalPath::parse("/elsewhere", Protected::default()).unwrap();
        assert!(
            !FirstSegments::of_word("customer").meets(path.first),
            "most patterns are passed over"
        );
    }

    #[test]
    fn names_that_fold_to_token_are_removed() {
        for alias in [
            "token[]",
            "token[0]",
            "token[a][b]",
            "[token]",
            "token%5B%5D",
            "%5btoken%5d",
            "Token",
            "TOKEN",
            "%74oken",
            "%2574oken",
            "+token",
            "%20token%20",
            "token%e2%80%8b",
            "to%e2%80%8bken",
            "%EF%BD%94oken",
            "to%E2%84%AAen",
            "token.x",
            "token",
        ] {
            for rest in ["=x", "", "=", "=a=b"] {
                let raw = format!("a=1&{alias}{rest}&b=2");
                assert_eq!(
                    Query::parse(Some(&raw)).unwrap().without_tokens(false),
                    "a=1&b=2",
                    "{raw}"
                );
            }
        }
        for other in ["tokens", "atoken", "to_kens", "x[token]", "ticket", "t"] {
            let raw = format!("{other}=x");
            assert_eq!(Query::parse(Some(&raw)).unwrap().without_tokens(false), raw);
        }
        assert_eq!(Query::parse(Some("a=1;token=x;b")).unwrap().without_tokens(false), "a=1;b");
        assert_eq!(Query::parse(Some("token=x;a")).unwrap().without_tokens(false), "a");
        for split in ["tok;en=x", "`tok;en-", ";token;=x", "tok;token=y;en=x", "to;token;ken"] {
            let raw = format!("a=1&{split}&b=2");
            let rest = Query::parse(Some(&raw)).unwrap().without_tokens(false);
            assert_eq!(rest, "a=1&b=2", "{raw}");
        }
    }
}
