//! Folding of characters for comparison, used for member names and for paths.
//!
//! A character folds to the letters that it may be taken for: compatibility-decomposed (NFKD),
//! without combining marks, in upper and then in lower case, so that dotless `ı`, long `ſ` and the
//! Kelvin sign are `i`, `s` and `k`. Patterns of this gateway consist of ASCII letters, so a
//! character folds to ASCII text or to one of five kinds. A table answers for every character in
//! the same time, however long its decomposition is.

use std::collections::HashMap;
use std::sync::LazyLock;

use unicode_normalization::char::{decompose_compatible, is_combining_mark};

/// What a character folds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folded {
    /// Lower-case ASCII, with [`OTHER_LETTER`] where other letters are between.
    Text(&'static [u8]),
    /// One or more letters or digits outside ASCII.
    Letter,
    /// A visible character that is neither a letter nor a digit.
    Symbol,
    /// A combining mark.
    Mark,
    /// A default-ignorable, invisible character.
    Invisible,
    /// White space.
    Blank,
}

/// A letter outside ASCII within [`Folded::Text`].
pub const OTHER_LETTER: u8 = 0xFF;

/// What a character folds to.
#[inline]
pub fn fold(character: char) -> Folded {
    let code = character as usize;
    let table = &*TABLE;
    match table.pages[table.index[code >> 8] as usize][code & 0xFF] {
        SYMBOL => Folded::Symbol,
        LETTER => Folded::Letter,
        MARK => Folded::Mark,
        INVISIBLE => Folded::Invisible,
        BLANK => Folded::Blank,
        text => Folded::Text(table.texts[(text - FIRST_TEXT) as usize]),
    }
}

/// Calls `push` with the letters and digits that a character folds to, those outside ASCII
/// included. The slow definition of [`fold`], for patterns.
pub fn letters(character: char, mut push: impl FnMut(char)) {
    decompose_compatible(character, |part| {
        // Marks first: the upper case of U+0345, a mark, is a letter.
        if is_combining_mark(part) || is_invisible(part) {
            return;
        }
        // Upper and then lower case: `ı`, `ſ` and `ß` have only a lower case.
        for letter in part.to_uppercase().flat_map(char::to_lowercase) {
            if letter.is_alphanumeric() {
                push(letter);
            }
        }
    });
}

const SYMBOL: u16 = 0;
const LETTER: u16 = 1;
const MARK: u16 = 2;
const INVISIBLE: u16 = 3;
const BLANK: u16 = 4;
const FIRST_TEXT: u16 = 5;

/// Two stages: a page for each 256 characters, equal pages stored once.
struct Table {
    index: Vec<u16>,
    pages: Vec<[u16; 256]>,
    texts: Vec<&'static [u8]>,
}

/// Built at the first use: 20 ms in a debug build, 2 ms in a release build.
static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table { index: Vec::new(), pages: Vec::new(), texts: Vec::new() };
    let mut known_pages: HashMap<[u16; 256], u16> = HashMap::new();
    let mut known_texts: HashMap<Vec<u8>, u16> = HashMap::new();
    for page in 0..=(char::MAX as u32) >> 8 {
        let mut entries = [SYMBOL; 256];
        for (entry, code) in entries.iter_mut().zip(page << 8..) {
            let Some(character) = char::from_u32(code) else { continue };
            *entry = classify(character).unwrap_or_else(|text| {
                *known_texts.entry(text).or_insert_with_key(|text| {
                    table.texts.push(text.clone().leak());
                    FIRST_TEXT + (table.texts.len() - 1) as u16
                })
            });
        }
        let at = *known_pages.entry(entries).or_insert_with(|| {
            table.pages.push(entries);
            (table.pages.len() - 1) as u16
        });
        table.index.push(at);
    }
    table
});

/// The kind of a character, or the text that it folds to.
fn classify(character: char) -> Result<u16, Vec<u8>> {
    if character.is_ascii_graphic() {
        return Err(vec![character.to_ascii_lowercase() as u8]);
    }
    if is_uniform(character) {
        return Ok(if character.is_alphanumeric() { LETTER } else { SYMBOL });
    }
    if is_invisible(character) {
        return Ok(INVISIBLE);
    }
    if character.is_whitespace() || character == BRAILLE_BLANK {
        return Ok(BLANK);
    }
    if is_combining_mark(character) {
        return Ok(MARK);
    }
    let mut text = Vec::new();
    decompose_compatible(character, |part| {
        if part.is_ascii_graphic() {
            text.push(part.to_ascii_lowercase() as u8);
            return;
        }
        letters(part, |letter| match u8::try_from(letter) {
            Ok(letter) if letter.is_ascii() => text.push(letter),
            _ if text.last() == Some(&OTHER_LETTER) => {}
            _ => text.push(OTHER_LETTER),
        });
    });
    match *text {
        [] => Ok(SYMBOL),
        [OTHER_LETTER] => Ok(LETTER),
        _ => Err(text),
    }
}

const BRAILLE_BLANK: char = '\u{2800}';

/// Whether a character belongs to a large block without decompositions to ASCII: ideographs, Hangul
/// syllables, private use, the upper planes. Saves nine tenths of the work.
const fn is_uniform(character: char) -> bool {
    matches!(character,
        '\u{3400}'..='\u{A48C}'
        | '\u{AC00}'..='\u{D7A3}'
        | '\u{E000}'..='\u{F8FF}'
        | '\u{12000}'..='\u{1342F}'
        | '\u{17000}'..='\u{1AFFF}'
        | '\u{20000}'..='\u{2F7FF}'
        | '\u{2FA20}'..='\u{DFFFF}'
        | '\u{E1000}'..)
}

/// Whether a character is default-ignorable (Unicode, `DerivedCoreProperties.txt`) or an
/// interlinear annotation mark, which is invisible too.
const fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{AD}'
        | '\u{34F}'
        | '\u{61C}'
        | '\u{115F}'..='\u{1160}'
        | '\u{17B4}'..='\u{17B5}'
        | '\u{180B}'..='\u{180F}'
        | '\u{200B}'..='\u{200F}'
        | '\u{202A}'..='\u{202E}'
        | '\u{2060}'..='\u{206F}'
        | '\u{3164}'
        | '\u{FE00}'..='\u{FE0F}'
        | '\u{FEFF}'
        | '\u{FFA0}'
        | '\u{FFF0}'..='\u{FFFB}'
        | '\u{1BCA0}'..='\u{1BCA3}'
        | '\u{1D173}'..='\u{1D17A}'
        | '\u{E0000}'..='\u{E0FFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_agrees_with_the_definition_for_all_of_unicode() {
        for character in '\0'..=char::MAX {
            let mut expected = Vec::new();
            letters(character, |letter| match u8::try_from(letter) {
                Ok(letter) if letter.is_ascii() => expected.push(letter),
                _ if expected.last() == Some(&OTHER_LETTER) => {}
                _ => expected.push(OTHER_LETTER),
            });
            let found: Vec<u8> = match fold(character) {
                Folded::Text(text) => {
                    let is_letter =
                        |byte: &u8| byte.is_ascii_alphanumeric() || *byte == OTHER_LETTER;
                    let mut found: Vec<u8> = text.iter().copied().filter(is_letter).collect();
                    found.dedup_by(|one, other| (*one, *other) == (OTHER_LETTER, OTHER_LETTER));
                    found
                }
                Folded::Letter => vec![OTHER_LETTER],
                _ => Vec::new(),
            };
            assert_eq!(found, expected, "U+{:04X}", character as u32);
        }
    }

    #[test]
    fn confusable_characters_fold_to_ascii() {
        for (character, text) in [
            ('A', "a"),
            ('/', "/"),
            ('ı', "i"),
            ('İ', "i"),
            ('ſ', "s"),
            ('\u{212A}', "k"),
            ('ß', "ss"),
            ('é', "e"),
            ('ﬃ', "ffi"),
            ('／', "/"),
            ('．', "."),
            ('‥', ".."),
            ('；', ";"),
            ('％', "%"),
            ('？', "?"),
            ('＃', "#"),
            ('𝐢', "i"),
            ('\u{212B}', "a"),
        ] {
            assert_eq!(fold(character), Folded::Text(text.as_bytes()), "{character:?}");
        }
        assert_eq!(fold('㎯'), Folded::Text(b"rads2"));
    }

    #[test]
    fn other_characters_are_of_one_kind_each() {
        for (characters, kind) in [
            ("øæ中한\u{FDFA}интα", Folded::Letter),
            ("—€👍°´\u{E000}", Folded::Symbol),
            ("\u{301}\u{345}\u{93F}", Folded::Mark),
            ("\u{200B}\u{FEFF}\u{AD}\u{3164}\u{FE0F}\u{E0041}", Folded::Invisible),
            (" \u{A0}\u{3000}\u{2028}\u{2800}\t", Folded::Blank),
        ] {
            for character in characters.chars() {
                assert_eq!(fold(character), kind, "{character:?}");
            }
        }
    }

    #[test]
    fn no_character_folds_to_more_than_its_bytes_allow() {
        let longest = TABLE.texts.iter().map(|text| text.len()).max();
        assert!(longest <= Some(6), "{longest:?}");
    }
}
