//! Public scalars below a root: paths of member names, compared decoded and exactly.
//!
//! `a.b` is member `b` of member `a` of the root; `*` is any one member, `**` any number of members
//! (also none), `{a,b}` one of several. Arrays are transparent. A selector names scalars: members
//! of an object need selectors.
//!
//! All selectors are matched at once with one bit for each position in each selector, as in
//! `names`; a position in the document is a set of bits, kept on a stack while the document is
//! rewritten.

use super::members::hash;

/// One bit for each position in a selector, and one for its end. A selector does not cross words.
type PositionSet = u64;

/// Maximum number of segments of a selector. Documents are refused before they are as deep.
const MAX_SEGMENTS: usize = PositionSet::BITS as usize - 1;

/// A parsed selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selector(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// `**`
    AnyDepth,
    /// `*`
    AnyMember,
    OneOf(Vec<String>),
}

impl Selector {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut segments = Vec::new();
        for written in text.split('.') {
            let segment = Segment::parse(written)?;
            // `**.**` equals `**`, and the compiled form relies on a single one.
            if segment != Segment::AnyDepth || segments.last() != Some(&segment) {
                segments.push(segment);
            }
        }
        if segments.len() > MAX_SEGMENTS {
            return Err(format!(
                "has {} segments; at most {MAX_SEGMENTS} can match",
                segments.len()
            ));
        }
        Ok(Selector(segments))
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            "**" => return Ok(Segment::AnyDepth),
            "*" => return Ok(Segment::AnyMember),
            _ => {}
        }
        let names: Vec<&str> = match (text.strip_prefix('{'), text.ends_with('}')) {
            (Some(inside), true) => inside[..inside.len() - 1].split(',').collect(),
            (Some(_), false) => {
                return Err(format!(
                    "unbalanced brace in `{text}`; `{{a,b}}` contains only names, no dots"
                ));
            }
            (None, _) => vec![text],
        };
        for name in &names {
            if name.contains(['[', ']']) {
                return Err(format!("`{name}` contains brackets, which arrays do not need"));
            }
            if name.contains(char::is_control) {
                return Err("contains a control character".into());
            }
            if name.is_empty() {
                return Err("empty name; expected member names separated by dots, such as \"criipto.domain\"".into());
            }
            if name.contains('*') {
                return Err(format!(
                    "`{name}`: `*` and `**` match whole names; list all names, as in `{{a,b}}`"
                ));
            }
            if name.contains(['{', '}', ',']) {
                return Err(format!(
                    "`{name}`: braces must enclose a whole segment, as in `ms365.{{tenantId,verified}}`"
                ));
            }
            if name.trim() != *name {
                return Err(format!(
                    "`{name}` has surrounding white space; names are compared exactly"
                ));
            }
        }
        Ok(Segment::OneOf(names.into_iter().map(str::to_owned).collect()))
    }
}

/// The compiled selectors.
pub(super) struct Selectors {
    /// Positions that any member advances.
    any: Vec<PositionSet>,
    /// Positions of `**`: any member may leave them unchanged, and they may be skipped.
    stay: Vec<PositionSet>,
    ends: Vec<PositionSet>,
    starts: Vec<PositionSet>,
    /// Hash table with open addressing; its size is a power of two and it is at most half full.
    table: Vec<Option<Known>>,
    nothing: Vec<PositionSet>,
}

/// A name in a selector, and the positions that it advances.
struct Known {
    name: Box<[u8]>,
    places: Vec<PositionSet>,
}

impl Selectors {
    pub(super) fn new(selectors: &[Selector]) -> Self {
        let mut names: Vec<(&str, usize, PositionSet)> = Vec::new();
        let (mut any, mut stay, mut ends, mut starts) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut used = PositionSet::BITS as usize;
        for Selector(segments) in selectors {
            if used + segments.len() + 1 > PositionSet::BITS as usize {
                used = 0;
                for places in [&mut any, &mut stay, &mut ends, &mut starts] {
                    places.push(0);
                }
            }
            let word = any.len() - 1;
            starts[word] |= 1 << used;
            for segment in segments {
                let place: PositionSet = 1 << used;
                match segment {
                    Segment::AnyDepth => stay[word] |= place,
                    Segment::AnyMember => any[word] |= place,
                    Segment::OneOf(listed) => {
                        names.extend(listed.iter().map(|name| (name.as_str(), word, place)))
                    }
                }
                used += 1;
            }
            ends[word] |= 1 << used;
            used += 1;
        }
        for word in 0..starts.len() {
            // A root that is a scalar is never public: a selector names members below it.
            starts[word] = pass_over(starts[word], stay[word]) & !ends[word];
        }
        let nothing = vec![0; any.len()];
        let mut table = Vec::new();
        table.resize_with((2 * names.len()).next_power_of_two().max(4), || None);
        let mut selectors = Selectors { any, stay, ends, starts, table, nothing };
        for (name, word, place) in names {
            let slot = selectors.slot(hash(name.as_bytes()), name.as_bytes());
            let empty =
                || Known { name: name.as_bytes().into(), places: selectors.nothing.clone() };
            selectors.table[slot].get_or_insert_with(empty).places[word] |= place;
        }
        selectors
    }

    /// Number of words of a position.
    pub(super) fn width(&self) -> usize {
        self.any.len()
    }

    /// Position at a root.
    pub(super) fn at_root(&self) -> &[PositionSet] {
        &self.starts
    }

    /// Pushes the position that a member leads to from the position that begins at `from` in
    /// `positions`. `hash` is the [`hash`] of the decoded `name`.
    pub(super) fn step(
        &self,
        positions: &mut Vec<PositionSet>,
        from: usize,
        hash: u64,
        name: &[u8],
    ) {
        let named =
            self.table[self.slot(hash, name)].as_ref().map_or(&self.nothing, |known| &known.places);
        for word in 0..self.width() {
            let at = positions[from + word];
            let on = (at & (named[word] | self.any[word])) << 1 | at & self.stay[word];
            positions.push(pass_over(on, self.stay[word]));
        }
    }

    /// Whether a scalar at this position is public.
    pub(super) fn is_public(&self, position: &[PositionSet]) -> bool {
        position.iter().zip(&self.ends).any(|(at, ends)| at & ends != 0)
    }

    /// Index of the name in the table, or of the slot where it belongs.
    fn slot(&self, hash: u64, name: &[u8]) -> usize {
        // The upper half of the product is the better half of the hash.
        let last = self.table.len() - 1;
        let mut slot = (hash >> 32) as usize & last;
        while self.table[slot].as_ref().is_some_and(|known| *known.name != *name) {
            slot = (slot + 1) & last;
        }
        slot
    }
}

/// Skips `**`, which may match no member.
fn pass_over(at: PositionSet, stay: PositionSet) -> PositionSet {
    at | (at & stay) << 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether one of the selectors makes the path public.
    fn public(selectors: &[&str], path: &[&str]) -> bool {
        let parsed: Vec<_> = selectors.iter().map(|text| Selector::parse(text).unwrap()).collect();
        let selectors = Selectors::new(&parsed);
        let mut positions = selectors.at_root().to_vec();
        let mut from = 0;
        for name in path {
            selectors.step(&mut positions, from, hash(name.as_bytes()), name.as_bytes());
            from += selectors.width();
        }
        selectors.is_public(&positions[from..])
    }

    #[test]
    fn selectors_mean_what_the_contract_says() {
        for (selector, yes, no) in [
            ("a.b", vec!["a.b"], vec!["", "a", "b", "a.b.c", "A.b", "a.B"]),
            ("*.b", vec!["a.b", "b.b"], vec!["b", "a.a.b"]),
            ("**.b", vec!["b", "a.b", "a.a.b", "b.b"], vec!["", "b.a"]),
            ("a.**.b", vec!["a.b", "a.x.b", "a.x.y.b"], vec!["b", "a", "x.a.b"]),
            ("a.{b,c}", vec!["a.b", "a.c"], vec!["a", "a.d", "a.b.c"]),
            ("a.**", vec!["a", "a.b", "a.b.c"], vec!["", "b.a"]),
            ("**", vec!["a", "a.b"], vec![""]),
            ("**.**.a", vec!["a", "b.a"], vec![""]),
            (
                "**.a.**.b.*",
                vec!["a.b.x", "x.a.y.b.z", "a.b.b.b", "a.a.b.x"],
                vec!["a.b", "a.x", "b.a.x"],
            ),
        ] {
            let path = |text: &'static str| {
                text.split('.').filter(|name| !name.is_empty()).collect::<Vec<_>>()
            };
            for yes in yes {
                assert!(public(&[selector], &path(yes)), "{selector} should mean {yes:?}");
            }
            for no in no {
                assert!(!public(&[selector], &path(no)), "{selector} should not mean {no:?}");
            }
        }
    }

    #[test]
    fn selectors_beyond_one_word_are_matched() {
        let many: Vec<String> =
            (0..200).map(|number| format!("**.n{number}.{{a,b{number}}}.*")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for number in 0..200 {
            assert!(public(&many, &["x", &format!("n{number}"), &format!("b{number}"), "y"]));
            assert!(!public(
                &many,
                &["x", &format!("n{number}"), &format!("b{}", number + 1), "y"]
            ));
        }
    }

    #[test]
    fn no_selector_makes_nothing_public() {
        assert!(!public(&[], &[]));
        assert!(!public(&[], &["a"]));
    }

    #[test]
    fn invalid_selector_is_an_error() {
        for wrong in [
            "", ".", "a.", ".a", "a..b", "a*", "***", "{a", "a}", "{a,b}c", "a{b,c}", "{a.b,c}",
            "{}", "{a,}", "{a, b}", "{*,a}", "{{a}}", "a,b", " a",
        ] {
            assert!(Selector::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(Selector::parse(&["a"; 64].join(".")).is_err());
        assert!(Selector::parse(&["a"; 63].join(".")).is_ok());
    }
}
