//! Classification of member names: root, secret, or side of a change.
//!
//! Names are compared folded (`telecomx_api::folding`), without characters that are neither letters
//! nor digits: `Api-Key`, `API_KEY` and `api\u200bKey` are all `apikey`. Letters of other scripts
//! that merely look similar are different letters.
//!
//! All patterns are matched at once with one bit for each position in each pattern (shift-and):
//! time is proportional to the length of the name, whatever it contains, and no memory is needed.

use std::collections::BTreeSet;

use telecomx_api::folding::{Folded, OTHER_LETTER, fold, letters};

/// One bit for each position in a pattern, and one for its end.
type PositionSet = u128;

/// Maximum length of a pattern, in folded letters and digits.
const MAX_PATTERN_LENGTH: usize = PositionSet::BITS as usize - 1;

/// Members with the old and the new value in an entry of the change log.
const CHANGE_NAMES: [&str; 4] = ["oldValue", "newValue", "oldDisplayValue", "newDisplayValue"];

/// A folded pattern for names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Step>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// `*`: any number of letters and digits.
    Any,
    Is(char),
}

impl Pattern {
    /// Parses the name of a root: one name without wildcards.
    pub(super) fn root(text: &str) -> Result<Self, String> {
        if let Some(sign) = text.chars().find(|sign| "*?.[]{}/,".contains(*sign)) {
            return Err(format!(
                "unexpected `{sign}`; a root is the name of one member, such as \"integrations\""
            ));
        }
        Self::folded(text)
    }

    /// Parses a name in which `*` matches any text.
    pub(super) fn glob(text: &str) -> Result<Self, String> {
        if let Some(sign) = text.chars().find(|sign| "?.[]{}/,".contains(*sign)) {
            return Err(format!(
                "unexpected `{sign}`; a pattern matches one name, with `*` for any characters, such as \"*password*\""
            ));
        }
        Self::folded(text)
    }

    fn folded(text: &str) -> Result<Self, String> {
        let mut steps = Vec::new();
        for character in text.chars() {
            match character {
                '*' => steps.push(Step::Any),
                _ => letters(character, |letter| steps.push(Step::Is(letter))),
            }
        }
        let letters = steps.iter().filter(|step| **step != Step::Any).count();
        match letters {
            0 => Err("has no letter or digit, so it would match every name or none; \
                      letter case, marks and punctuation are not compared"
                .to_owned()),
            1..=MAX_PATTERN_LENGTH => Ok(Pattern(steps)),
            _ => Err(format!(
                "has {letters} letters and digits; at most {MAX_PATTERN_LENGTH} are compared"
            )),
        }
    }
}

/// Meaning of a name. Several may apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meaning {
    pub root: bool,
    pub secret: bool,
    pub change: bool,
}

/// The compiled patterns.
pub(super) struct Names {
    blocks: Vec<Block>,
    foreign: Foreign,
}

/// Characters that fold to a letter outside ASCII that occurs in a pattern, in order. Empty for
/// patterns of ASCII, for which all other letters are equal.
#[derive(Default)]
struct Foreign(Vec<(char, Box<[char]>)>);

/// A letter that occurs in no pattern.
const UNKNOWN: char = '\0';

impl Foreign {
    fn of<'p>(patterns: impl Iterator<Item = &'p Pattern>) -> Self {
        let steps = patterns.flat_map(|pattern| &pattern.0);
        let known: BTreeSet<char> = steps
            .filter_map(|step| match step {
                Step::Is(letter) if !letter.is_ascii() => Some(*letter),
                _ => None,
            })
            .collect();
        if known.is_empty() {
            return Foreign::default();
        }
        // Once per policy: all of Unicode takes some 30 ms in a release build.
        let of = |character: char| {
            let mut folded = Vec::new();
            letters(character, |letter| {
                let letter =
                    if letter.is_ascii() || known.contains(&letter) { letter } else { UNKNOWN };
                // One letter that occurs in no pattern means as much as several.
                if letter != UNKNOWN || folded.last() != Some(&UNKNOWN) {
                    folded.push(letter);
                }
            });
            let holds = folded.iter().any(|letter| known.contains(letter));
            holds.then(|| (character, folded.into_boxed_slice()))
        };
        Foreign(('\u{80}'..=char::MAX).filter_map(of).collect())
    }

    fn get(&self, character: char) -> Option<&[char]> {
        let at = self.0.binary_search_by_key(&character, |(known, _)| *known).ok()?;
        Some(&self.0[at].1)
    }
}

impl Names {
    /// `changes`: whether [`CHANGE_NAMES`] mean a side of a change; otherwise no name does.
    pub(super) fn new(roots: &[Pattern], secrets: &[Pattern], changes: bool) -> Self {
        let mut names =
            Names { blocks: Vec::new(), foreign: Foreign::of(roots.iter().chain(secrets)) };
        for root in roots {
            names.add(root, |block| &mut block.roots);
        }
        for secret in secrets {
            names.add(secret, |block| &mut block.secrets);
        }
        for name in CHANGE_NAMES.into_iter().filter(|_| changes) {
            let pattern =
                Pattern(name.chars().map(|letter| Step::Is(letter.to_ascii_lowercase())).collect());
            names.add(&pattern, |block| &mut block.changes);
        }
        names
    }

    fn add(&mut self, pattern: &Pattern, ends: impl Fn(&mut Block) -> &mut PositionSet) {
        let size = pattern.0.iter().filter(|step| **step != Step::Any).count() + 1;
        if self.blocks.last().is_none_or(|block| block.used + size > PositionSet::BITS as usize) {
            self.blocks.push(Block::empty());
        }
        if let Some(block) = self.blocks.last_mut() {
            let start = block.used;
            let end = block.add(pattern);
            *ends(block) |= end;
            block.starts |= 1 << start;
            block.root_starts |= if block.roots & end != 0 { 1 << start } else { 0 };
        }
    }

    /// Classifies a decoded name.
    ///
    /// A name that is a path through a root means that root too: `integrations.billing.password` is
    /// below `integrations`, in any spelling. So a root may begin and end wherever no letter or
    /// digit is adjacent.
    pub(super) fn meaning(&self, name: &[u8]) -> Meaning {
        let mut meaning = Meaning::default();
        for block in &self.blocks {
            let ends = block.run(name, &self.foreign);
            meaning.root |= ends & block.roots != 0;
            meaning.secret |= ends & block.secrets != 0;
            meaning.change |= ends & block.changes != 0;
        }
        meaning
    }

    /// Whether a text contains the name of a root as a separate word, as in
    /// `integrations[0].enabled`.
    pub(super) fn mentions_root(&self, text: &[u8]) -> bool {
        self.blocks
            .iter()
            .any(|block| block.roots != 0 && block.run(text, &self.foreign) & block.roots != 0)
    }
}

/// As many patterns as fit into one word of bits.
struct Block {
    used: usize,
    /// Positions that a letter or digit of ASCII advances: `0` to `9`, `a` to `z`.
    ascii: [PositionSet; 36],
    /// The same for other letters.
    other: Vec<(char, PositionSet)>,
    /// Positions at which any letter may be skipped.
    stars: PositionSet,
    starts: PositionSet,
    root_starts: PositionSet,
    roots: PositionSet,
    secrets: PositionSet,
    changes: PositionSet,
}

impl Block {
    const fn empty() -> Self {
        Block {
            used: 0,
            ascii: [0; 36],
            other: Vec::new(),
            stars: 0,
            starts: 0,
            root_starts: 0,
            roots: 0,
            secrets: 0,
            changes: 0,
        }
    }

    /// Adds the pattern and returns its end.
    fn add(&mut self, pattern: &Pattern) -> PositionSet {
        for step in &pattern.0 {
            let place: PositionSet = 1 << self.used;
            let Step::Is(letter) = *step else {
                self.stars |= place;
                continue;
            };
            match CLASSES.get(letter as usize) {
                Some(class) => self.ascii[*class as usize] |= place,
                None => match self.other.iter_mut().find(|(known, _)| *known == letter) {
                    Some((_, places)) => *places |= place,
                    None => self.other.push((letter, place)),
                },
            }
            self.used += 1;
        }
        let end = 1 << self.used;
        self.used += 1;
        end
    }

    /// Returns the ends that the name reaches.
    fn run(&self, name: &[u8], foreign: &Foreign) -> PositionSet {
        let mut run = Run { block: self, foreign, at: self.starts, reached: 0 };
        for (index, byte) in name.iter().enumerate() {
            match CLASSES.get(*byte as usize) {
                Some(&SEPARATOR) => run.separator(),
                Some(class) => run.step(self.ascii[*class as usize]),
                None => {
                    run.characters(&name[index..]);
                    break;
                }
            }
        }
        run.reached | run.at
    }
}

/// State of matching one name.
struct Run<'b> {
    block: &'b Block,
    foreign: &'b Foreign,
    at: PositionSet,
    reached: PositionSet,
}

impl Run<'_> {
    fn step(&mut self, leading_on: PositionSet) {
        self.at = (self.at & leading_on) << 1 | self.at & self.block.stars;
    }

    /// Handles a character that folding drops: matches continue, a root may have ended, another may
    /// begin.
    fn separator(&mut self) {
        self.reached |= self.at & self.block.roots;
        self.at |= self.block.root_starts;
    }

    /// Decodes UTF-8. Not with the iterators of `str`, which are ten times slower in a debug build;
    /// and the time for each byte must not depend on the text.
    fn characters(&mut self, text: &[u8]) {
        let mut at = 0;
        while at < text.len() {
            let first = text[at];
            let (length, bits) = match first {
                0..0x80 => (1, first),
                0x80..0xE0 => (2, first & 0x1F),
                0xE0..0xF0 => (3, first & 0x0F),
                _ => (4, first & 0x07),
            };
            let mut code = u32::from(bits);
            let end = text.len().min(at + length);
            at += 1;
            while at < end {
                code = code << 6 | u32::from(text[at] & 0x3F);
                at += 1;
            }
            match char::from_u32(code) {
                Some(character) => self.character(character),
                None => self.separator(),
            }
        }
    }

    fn character(&mut self, character: char) {
        if let Some(class) = CLASSES.get(character as usize) {
            match *class {
                SEPARATOR => self.separator(),
                class => self.step(self.block.ascii[class as usize]),
            }
            return;
        }
        if !self.foreign.0.is_empty()
            && let Some(letters) = self.foreign.get(character)
        {
            letters.iter().for_each(|letter| self.letter(*letter));
            return;
        }
        match fold(character) {
            // It occurs in no pattern: only wildcards advance.
            Folded::Letter => self.step(0),
            Folded::Text(text) if text.iter().any(|byte| is_letter(*byte)) => {
                for byte in text.iter().copied().filter(|byte| is_letter(*byte)) {
                    let class = CLASSES.get(byte as usize);
                    self.step(class.map_or(0, |class| self.block.ascii[*class as usize]));
                }
            }
            Folded::Text(_) | Folded::Symbol | Folded::Mark | Folded::Invisible | Folded::Blank => {
                self.separator()
            }
        }
    }

    fn letter(&mut self, letter: char) {
        let leading_on = match CLASSES.get(letter as usize) {
            Some(class) => self.block.ascii[*class as usize],
            None => self
                .block
                .other
                .iter()
                .find(|(known, _)| *known == letter)
                .map_or(0, |(_, places)| *places),
        };
        self.step(leading_on);
    }
}

const SEPARATOR: u8 = u8::MAX;

/// For each character of ASCII its index in [`Block::ascii`], or [`SEPARATOR`].
const CLASSES: [u8; 128] = {
    let mut classes = [SEPARATOR; 128];
    let mut class = 0;
    while class < 36 {
        if class < 10 {
            classes[(b'0' + class) as usize] = class;
        } else {
            classes[(b'a' + class - 10) as usize] = class;
            classes[(b'A' + class - 10) as usize] = class;
        }
        class += 1;
    }
    classes
};

/// Whether a byte of [`Folded::Text`] is a letter or a digit.
const fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == OTHER_LETTER
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(roots: &[&str], secrets: &[&str], changes: bool) -> Names {
        let all = |texts: &[&str], parse: fn(&str) -> Result<Pattern, String>| {
            texts.iter().map(|text| parse(text).unwrap()).collect::<Vec<_>>()
        };
        Names::new(&all(roots, Pattern::root), &all(secrets, Pattern::glob), changes)
    }

    #[test]
    fn root_is_recognized_in_every_spelling() {
        let names = names(&["integrations", "customer_integrations"], &[], false);
        for spelled in [
            "integrations",
            "Integrations",
            "INTEGRATIONS",
            "integ\u{200b}rations",
            "\u{feff}integrations",
            "inte\u{301}grations",
            "int\u{e9}grations",
            "integ\u{345}rations",
            "integ\u{93f}rations",
            "ｉｎｔｅｇｒａｔｉｏｎｓ",
            "ıntegrations",
            "integrationſ",
            "integ\u{3164}rations",
            "_integrations",
            "integrati[ons",
            "integ\0rations",
            "customerIntegrations",
            "customer-integrations",
            "integrations.billing.economic",
            "$set.integrations",
            "integrations[0]",
        ] {
            assert!(names.meaning(spelled.as_bytes()).root, "{spelled:?}");
        }
        for other in
            ["integration", "integrationss", "xintegrations", "customer", "", "_", "intеgrations"]
        {
            assert!(!names.meaning(other.as_bytes()).root, "{other:?}");
        }
    }

    #[test]
    fn globs_match_folded_names_and_no_others() {
        let names = names(&[], &["*password*", "*api_key", "pin", "a*b*c", "*nøgle*"], false);
        for name in [
            "password",
            "oldPassWordHash",
            "pass-word",
            "x-api-key",
            "APIKEY",
            "P.I.N",
            "abc",
            "aXXbXXc",
            "NØGLE",
        ] {
            assert!(names.meaning(name.as_bytes()).secret, "{name:?}");
        }
        for name in ["passwor", "apikeys", "spin", "pins", "acb", "abcd", "ab", "nogle", ""] {
            assert!(!names.meaning(name.as_bytes()).secret, "{name:?}");
        }
    }

    #[test]
    fn repetitive_names_and_overlapping_patterns_are_matched() {
        let names = names(
            &["integrations", "customerIntegrations"],
            &["**password**", "*nøgle*", "*køb*", "pin"],
            false,
        );
        for name in
            ["passwordpassword", "a_password_password", "nøgle", "nøglenøgle", "køb", "købkøb"]
        {
            assert!(names.meaning(name.as_bytes()).secret, "{name:?}");
        }
        // A pattern without wildcards matches the whole name, a root also a part of a path, in
        // either order.
        assert!(!names.meaning(b"the.pin").secret && !names.meaning(b"pin.code").secret);
        assert!(names.meaning(b"$set.customerIntegrations").root);
    }

    #[test]
    fn block_is_filled_to_its_capacity_and_not_beyond() {
        let room = PositionSet::BITS as usize;
        for (letters, blocks) in [(room / 2 - 1, 1), (room / 2, 2)] {
            let patterns = ["a".repeat(room / 2 - 1), "b".repeat(letters)];
            let names = names(&[], &[&patterns[0], &patterns[1]], false);
            assert_eq!(names.blocks.len(), blocks);
            for pattern in &patterns {
                assert!(names.meaning(pattern.as_bytes()).secret);
                assert!(!names.meaning(&pattern.as_bytes()[1..]).secret);
            }
        }
    }

    #[test]
    fn patterns_beyond_one_block_are_matched_too() {
        let many: Vec<String> = (0..100).map(|number| format!("*secret{number}x*")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let names = names(&["integrations"], &many, true);
        assert!(names.blocks.len() > 5);
        for number in 0..100 {
            assert!(names.meaning(format!("my_Secret{number}X_").as_bytes()).secret);
            assert!(!names.meaning(format!("my_Secret{number}").as_bytes()).secret);
        }
        assert_eq!(names.meaning(b"old_value"), Meaning { change: true, ..Meaning::default() });
        assert!(names.meaning(b"integrations").root);
    }

    #[test]
    fn text_mentions_a_root_only_as_a_separate_word() {
        let names = names(&["integrations", "customerIntegrations"], &["*token*"], false);
        for text in [
            "integrations",
            "a/Integrations/b",
            "customer_integrations.x",
            "see integrations!",
            "[\"integrations\"]",
        ] {
            assert!(names.mentions_root(text.as_bytes()), "{text}");
        }
        for text in ["", "token", "disintegrations", "integrationsbilling", "æintegrations"] {
            assert!(!names.mentions_root(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn invalid_name_pattern_is_an_error() {
        for wrong in ["", "*", "_*_", "a.b", "a?", "[ab]", &"x".repeat(128)] {
            assert!(Pattern::glob(wrong).is_err(), "{wrong:?}");
            assert!(Pattern::root(wrong).is_err(), "{wrong:?}");
        }
        assert!(Pattern::root("integr*").is_err());
        assert!(Pattern::glob("_*_").is_err_and(|said| said.contains("no letter or digit")));
        assert!(Pattern::glob(&"x".repeat(127)).is_ok());
    }
}
