//! Every way in which another program may read a path, as lists of segments.
//!
//! A reading is a choice of where the path is split (raw, after one or more decodings, after
//! folding; with or without `\`), whether it ends at a decoded `?` or `#`, whether dot segments are
//! resolved and which empty segments are dropped. Only the choices that make a difference for a
//! path are tried, so that an ordinary path has one reading. `;parameters`, blanks, invisible
//! characters and letter case need no choice: a word is compared with what is left without them,
//! and `*` matches either way.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::error::Refusal;
use super::folding::{Folded, OTHER_LETTER, fold};
use super::path::word_is;

/// Escapes within escapes deeper than this are refused: no honest path has them.
const MAX_DECODE_ROUNDS: usize = 4;

/// Readings of one path. Four kinds of ambiguity at once have at most 24; a path with more than
/// this is made to be expensive, and is refused.
const MAX_READINGS: usize = 64;

/// All readings of one path, and its normal form.
pub(super) struct Readings {
    decoded: String,
    folded: String,
    splits: Vec<Split>,
}

/// A path split in one way.
struct Split {
    /// The segments, decoded and folded, one behind the other.
    text: String,
    pieces: Vec<Piece>,
}

/// A segment between two delimiters.
#[derive(Clone, Copy)]
struct Piece {
    start: usize,
    end: usize,
    /// Where `;parameters` begin, or the end.
    parameters: usize,
    /// Where a decoded `?` or `#` is, or the end.
    cut: usize,
    is_empty: bool,
    /// Whether it is `.` or `..` before it is decoded further.
    is_dots: bool,
}

/// A segment in a reading.
#[derive(Clone, Copy)]
pub(super) struct Spelling<'a> {
    /// Folded, without `;parameters`.
    word: &'a str,
    /// The same, ended at a `?` or `#`.
    cut: &'a str,
    is_empty: bool,
}

impl AsRef<str> for Spelling<'_> {
    fn as_ref(&self) -> &str {
        self.cut
    }
}

impl Spelling<'_> {
    /// Whether it may be taken for this word of a pattern.
    pub(super) fn is(&self, word: &str) -> bool {
        match word {
            "*" => !self.is_empty,
            _ => [self.word, self.cut].iter().any(|read| word_is(word, read, str::eq_ignore_ascii_case)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dots {
    Kept,
    /// Those that are dots where the path is split.
    Resolved,
    /// Those that are dots once decoded and folded, too.
    ResolvedDecoded,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Empty {
    Kept,
    Dropped,
    /// Those that are empty once folded and without `;parameters`, too.
    DroppedFolded,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Never,
    BeforeDots,
    AfterDots,
}

impl Readings {
    /// Reads a path.
    ///
    /// # Errors
    /// A broken escape, escapes within escapes that do not end, a control character, or more
    /// readings than [`MAX_READINGS`].
    pub(super) fn of(raw: &str) -> Result<Self, Refusal> {
        check_escapes(raw)?;
        let levels = decodings(raw)?;
        let decoded = levels.last().cloned().unwrap_or_default();
        if decoded.chars().any(char::is_control) {
            return Err(Refusal::ControlCharacter);
        }
        let folded = fold_text(&decoded);
        // A wide `%` folds to `%`: no honest path has such an escape.
        if !percent_decode_str(&folded).eq(folded.bytes()) {
            return Err(Refusal::BrokenEscape);
        }
        let mut splits = Vec::new();
        for delimiters in [&['/'][..], &['/', '\\']] {
            let mut before = if delimiters.len() == 1 { None } else { Some(count(&levels[0], &['/'])) };
            for level in levels.iter().chain([&folded]) {
                let found = count(level, delimiters);
                if before != Some(found) {
                    splits.push(Split::of(level, delimiters));
                }
                before = before.max(Some(found));
            }
        }
        let readings = Readings { decoded, folded, splits };
        if readings.splits.iter().map(|split| split.choices().count()).sum::<usize>() > MAX_READINGS {
            return Err(Refusal::AliasPath);
        }
        Ok(readings)
    }

    /// The segments of the reading that decodes, folds and resolves most, and the same segments
    /// in the letters in which they came.
    pub(super) fn normal_form(&self) -> (Vec<String>, Vec<String>) {
        (resolve_dots(&self.folded), resolve_dots(&self.decoded))
    }

    /// Calls `judge` with the segments of each reading.
    pub(super) fn for_each(&self, mut judge: impl FnMut(&[Spelling<'_>])) {
        let mut segments = Vec::new();
        for split in &self.splits {
            for (cut, dots, empty) in split.choices() {
                segments.clear();
                split.read(cut, dots, empty, &mut segments);
                judge(&segments);
            }
        }
    }
}

impl Split {
    fn of(path: &str, delimiters: &[char]) -> Self {
        let mut split = Split { text: String::with_capacity(path.len()), pieces: Vec::new() };
        for segment in path.split(delimiters).skip(1) {
            let start = split.text.len();
            fold_into(&decode_fully(segment), &mut split.text);
            let folded = &split.text[start..];
            split.pieces.push(Piece {
                start,
                end: split.text.len(),
                parameters: start + folded.find(';').unwrap_or(folded.len()),
                cut: start + folded.find(['?', '#']).unwrap_or(folded.len()),
                is_empty: segment.is_empty(),
                is_dots: matches!(segment, "." | ".."),
            });
        }
        split
    }

    /// The choices that make a difference here.
    fn choices(&self) -> impl Iterator<Item = (Cut, Dots, Empty)> {
        let any = |is: &dyn Fn(&Piece) -> bool| self.pieces.iter().any(is);
        let is_cut = any(&|piece| piece.cut < piece.end);
        let decoded_dots = any(&|piece| !piece.is_dots && matches!(self.word(piece), "." | ".."));
        let folded_empty = any(&|piece| !piece.is_empty && self.word(piece).is_empty());
        let (dots, empty) = (any(&|piece| piece.is_dots), any(&|piece| piece.is_empty));
        let cuts = [(Cut::Never, true), (Cut::BeforeDots, is_cut), (Cut::AfterDots, is_cut)];
        let dots = [(Dots::Kept, true), (Dots::Resolved, dots), (Dots::ResolvedDecoded, decoded_dots)];
        let empties = [(Empty::Kept, true), (Empty::Dropped, empty), (Empty::DroppedFolded, folded_empty)];
        cuts.into_iter().filter(|(_, is)| *is).flat_map(move |(cut, _)| {
            dots.into_iter().filter(move |(dots, is)| *is && (*dots != Dots::Kept || cut != Cut::AfterDots)).flat_map(
                move |(dots, _)| {
                    let empties = empties.into_iter().filter(|(_, is)| *is);
                    empties.map(move |(empty, _)| (cut, dots, empty))
                },
            )
        })
    }

    fn read<'s>(&'s self, cut: Cut, dots: Dots, empty: Empty, into: &mut Vec<Spelling<'s>>) {
        // Where each segment that is left is cut, if it is.
        let mut is_cut: Vec<bool> = Vec::new();
        for piece in &self.pieces {
            let word = self.word(piece);
            let is_dropped = match empty {
                Empty::Kept => false,
                Empty::Dropped => piece.is_empty,
                Empty::DroppedFolded => word.is_empty(),
            };
            let is_resolved = match dots {
                Dots::Kept => false,
                Dots::Resolved => piece.is_dots,
                Dots::ResolvedDecoded => matches!(word, "." | ".."),
            };
            if is_dropped || (is_resolved && word == ".") {
                continue;
            }
            if is_resolved {
                into.pop();
                is_cut.pop();
                continue;
            }
            let end = piece.cut.min(piece.parameters);
            into.push(Spelling { word, cut: &self.text[piece.start..end], is_empty: piece.is_empty });
            is_cut.push(piece.cut < piece.end);
            if cut == Cut::BeforeDots && piece.cut < piece.end {
                break;
            }
        }
        if cut == Cut::AfterDots
            && let Some(at) = is_cut.iter().position(|is_cut| *is_cut)
        {
            into.truncate(at + 1);
        }
        // What is left of a segment that begins with `?` is an empty one.
        if cut != Cut::Never && into.last().is_some_and(|last| last.cut.is_empty()) {
            into.pop();
        }
    }

    /// A segment without its `;parameters`.
    fn word(&self, piece: &Piece) -> &str {
        &self.text[piece.start..piece.parameters]
    }
}

fn count(text: &str, delimiters: &[char]) -> usize {
    text.matches(delimiters).count()
}

/// Every `%` is followed by two hexadecimal digits.
pub(super) fn check_escapes(text: &str) -> Result<(), Refusal> {
    let bytes = text.as_bytes();
    memchr::memchr_iter(b'%', bytes)
        .all(|at| bytes.get(at + 1..at + 3).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit)))
        .then_some(())
        .ok_or(Refusal::BrokenEscape)
}

/// The text, decoded once, twice and so on, until nothing changes.
fn decodings(raw: &str) -> Result<Vec<String>, Refusal> {
    let mut levels = vec![raw.to_owned()];
    for _ in 0..MAX_DECODE_ROUNDS {
        let text = &levels[levels.len() - 1];
        let decoded = percent_decode_str(text).decode_utf8().map_err(|_| Refusal::BrokenEscape)?;
        if *decoded == **text {
            return Ok(levels);
        }
        levels.push(decoded.into_owned());
    }
    Err(Refusal::BrokenEscape)
}

/// A segment of a text that [`decodings`] accepted.
fn decode_fully(segment: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(segment);
    while text.contains('%') {
        let decoded = percent_decode_str(&text).decode_utf8_lossy().into_owned();
        if *decoded == *text {
            break;
        }
        text = Cow::Owned(decoded);
    }
    text
}

fn fold_text(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    fold_into(text, &mut folded);
    folded
}

/// Appends the text in lower case, without compatibility forms, marks, blanks and invisible
/// characters.
fn fold_into(text: &str, into: &mut String) {
    for character in text.chars() {
        if character.is_ascii_graphic() {
            into.push(character.to_ascii_lowercase());
            continue;
        }
        match fold(character) {
            Folded::Text(folded) => {
                into.extend(folded.iter().map(|byte| match *byte {
                    OTHER_LETTER => char::REPLACEMENT_CHARACTER,
                    byte => char::from(byte),
                }));
            }
            Folded::Letter | Folded::Symbol => into.push(character),
            Folded::Mark | Folded::Invisible | Folded::Blank => {}
        }
    }
}

/// The segments between slashes of either kind, without `;parameters`, empty ones and dots.
fn resolve_dots(text: &str) -> Vec<String> {
    let mut resolved: Vec<String> = Vec::new();
    for segment in text.split(['/', '\\']) {
        match segment.split(';').next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(resolved.pop()),
            segment => resolved.push(segment.to_owned()),
        }
    }
    resolved
}
