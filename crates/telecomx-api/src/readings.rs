//! All ways in which another program may read a path, as lists of segments.
//!
//! A reading is a choice of where the path is split (raw, after one or more decodings, after
//! folding; with or without `\`; before or after `;parameters` are dropped), at which decoded `?`
//! or `#` it ends, which dot segments are resolved and which empty segments are dropped. Only
//! choices that make a difference for a path are tried, so that an ordinary path has one reading.
//! Blanks, invisible characters and letter case need no choice: words are compared without them,
//! and `*` matches in any case.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::error::Refusal;
use super::folding::{Folded, OTHER_LETTER, fold};
use super::pattern_word::word_is;

/// Maximum depth of escapes within escapes; no legitimate path has more.
const MAX_DECODE_ROUNDS: usize = 4;

/// Maximum number of readings of a path. A legitimate path has a few; a path with more is made to
/// be expensive and is refused.
const MAX_READINGS: usize = 64;

/// All readings of one path, and its normal form.
pub(super) struct Readings {
    decoded: String,
    folded: String,
    splits: Vec<Split>,
}

/// A path split in one way.
struct Split {
    /// The decoded and folded segments, concatenated.
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
    /// Where a decoded and folded `?` or `#` is, or the end.
    cut: usize,
    is_empty: bool,
    /// How many more decodings make it `.` or `..`; [`FOLDED`], or [`NO_DOTS`].
    dots: u8,
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
    /// Whether a reader could take the segment for this word of a pattern.
    pub(super) fn is(&self, word: &str) -> bool {
        match word {
            "*" => !self.is_empty,
            _ => [self.word, self.cut]
                .iter()
                .any(|read| word_is(word, read, str::eq_ignore_ascii_case)),
        }
    }
}

/// Dots once folded and without `;parameters`.
const FOLDED: u8 = MAX_DECODE_ROUNDS as u8;

/// No dots in any reading.
const NO_DOTS: u8 = FOLDED + 1;

/// Which dot segments a reading resolves: none, or those of at most this many decodings.
type Dots = Option<u8>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Empty {
    Kept,
    Dropped,
    /// Also segments that are empty after folding and without `;parameters`.
    DroppedFolded,
}

/// Where a reading ends: `None` at the end of the path, or within this piece.
type Cut = Option<(usize, CutOrder)>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum CutOrder {
    BeforeDots,
    AfterDots,
}

impl Readings {
    /// Reads a path.
    ///
    /// # Errors
    /// A broken escape, escapes within escapes that do not end, a control character, or more
    /// readings than [`MAX_READINGS`].
    pub(super) fn from_path(raw: &str) -> Result<Self, Refusal> {
        check_escapes(raw)?;
        let levels = decodings(raw)?;
        let decoded = levels.last().cloned().unwrap_or_default();
        if decoded.chars().any(char::is_control) {
            return Err(Refusal::ControlCharacter);
        }
        let folded = fold_text(&decoded);
        // A full-width `%` folds to `%`: no legitimate path has such an escape.
        if !percent_decode_str(&folded).eq(folded.bytes()) {
            return Err(Refusal::BrokenEscape);
        }
        let mut splits = Vec::new();
        // Some servers drop `;parameters`, up to the next slash, before they decode or split
        // further.
        for level in levels.iter().filter(|level| level.contains(';')) {
            push_splits(&decodings(&without_parameters(level))?, &mut splits);
        }
        push_splits(&levels, &mut splits);
        let readings = Readings { decoded, folded, splits };
        if readings.splits.iter().map(|split| split.choices().len()).sum::<usize>() > MAX_READINGS {
            return Err(Refusal::AliasPath);
        }
        Ok(readings)
    }

    /// Returns the segments of the reading that decodes, folds and resolves most, and the same
    /// segments with their original letters.
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
    fn from_path(path: &str, delimiters: &[char]) -> Self {
        let mut split = Split { text: String::with_capacity(path.len()), pieces: Vec::new() };
        for segment in path.split(delimiters).skip(1) {
            let start = split.text.len();
            let (decoded, dots) = decode_fully(segment);
            fold_into(&decoded, &mut split.text);
            let folded = &split.text[start..];
            let parameters = folded.find(';').unwrap_or(folded.len());
            let dots = if is_dots(&folded[..parameters]) { dots.min(FOLDED) } else { dots };
            split.pieces.push(Piece {
                start,
                end: split.text.len(),
                parameters: start + parameters,
                cut: start + folded.find(['?', '#']).unwrap_or(folded.len()),
                is_empty: segment.is_empty(),
                dots,
            });
        }
        split
    }

    /// Returns the choices that make a difference for this split.
    fn choices(&self) -> Vec<(Cut, Dots, Empty)> {
        let any = |is: &dyn Fn(&Piece) -> bool| self.pieces.iter().any(is);
        let is_cut_to_dots =
            |piece: &Piece| is_dots(&self.text[piece.start..piece.cut.min(piece.parameters)]);
        let has_dots =
            |at: u8| any(&|piece| piece.dots == at || (at == FOLDED && is_cut_to_dots(piece)));
        let mut dots: Vec<Dots> = vec![None];
        dots.extend((0..=FOLDED).filter(|at| has_dots(*at)).map(Some));
        let mut empties = vec![Empty::Kept];
        if any(&|piece| piece.is_empty) {
            empties.push(Empty::Dropped);
        }
        if any(&|piece| !piece.is_empty && self.word(piece).is_empty()) {
            empties.push(Empty::DroppedFolded);
        }
        let mut cuts: Vec<Cut> = vec![None];
        let ends = self.pieces.iter().enumerate().filter(|(_, piece)| piece.cut < piece.end);
        for (at, _) in ends.take(MAX_READINGS) {
            cuts.push(Some((at, CutOrder::BeforeDots)));
            // The order matters only where dots are resolved.
            if dots.len() > 1 {
                cuts.push(Some((at, CutOrder::AfterDots)));
            }
        }
        let mut choices = Vec::new();
        for cut in cuts {
            for dots in &dots {
                choices.extend(empties.iter().map(|empty| (cut, *dots, *empty)));
            }
        }
        choices
    }

    fn read<'s>(&'s self, cut: Cut, dots: Dots, empty: Empty, into: &mut Vec<Spelling<'s>>) {
        // Index of the piece of each remaining segment.
        let mut left = Vec::new();
        for (at, piece) in self.pieces.iter().enumerate() {
            let is_end = cut == Some((at, CutOrder::BeforeDots));
            let end = if is_end { piece.cut.min(piece.parameters) } else { piece.parameters };
            let word = &self.text[piece.start..end];
            let is_dropped = match empty {
                Empty::Kept => false,
                Empty::Dropped => piece.is_empty,
                Empty::DroppedFolded => word.is_empty(),
            };
            let is_resolved =
                dots.is_some_and(|most| piece.dots <= most || (is_end && is_dots(word)));
            if is_resolved && word == ".." {
                into.pop();
                left.pop();
            } else if !is_dropped && !is_resolved {
                let end = piece.cut.min(piece.parameters);
                into.push(Spelling {
                    word,
                    cut: &self.text[piece.start..end],
                    is_empty: piece.is_empty,
                });
                left.push(at);
            }
            if is_end {
                break;
            }
        }
        if let Some((cut, _)) = cut
            && let Some(last) = left.iter().position(|at| *at == cut)
        {
            into.truncate(last + 1);
            // The rest of a segment that begins with the delimiter is empty.
            if self.pieces[cut].cut == self.pieces[cut].start {
                into.pop();
            }
        }
    }

    /// Returns a segment without its `;parameters`.
    fn word(&self, piece: &Piece) -> &str {
        &self.text[piece.start..piece.parameters]
    }
}

/// Adds all splits of a path, which is given in all its decodings.
fn push_splits(levels: &[String], splits: &mut Vec<Split>) {
    let folded = fold_text(levels.last().map_or("", String::as_str));
    for delimiters in [&['/'][..], &['/', '\\']] {
        let mut before = if delimiters.len() == 1 { None } else { Some(count(&levels[0], &['/'])) };
        for level in levels.iter().chain([&folded]) {
            let found = count(level, delimiters);
            if before != Some(found) {
                splits.push(Split::from_path(level, delimiters));
            }
            before = before.max(Some(found));
        }
    }
}

/// Removes everything between a `;` and the next slash.
fn without_parameters(path: &str) -> String {
    let kept: Vec<&str> =
        path.split('/').map(|part| part.split(';').next().unwrap_or_default()).collect();
    kept.join("/")
}

fn count(text: &str, delimiters: &[char]) -> usize {
    text.matches(delimiters).count()
}

/// Checks that every `%` is followed by two hexadecimal digits.
pub(super) fn check_escapes(text: &str) -> Result<(), Refusal> {
    let bytes = text.as_bytes();
    memchr::memchr_iter(b'%', bytes)
        .all(|at| {
            bytes.get(at + 1..at + 3).is_some_and(|pair| pair.iter().all(u8::is_ascii_hexdigit))
        })
        .then_some(())
        .ok_or(Refusal::BrokenEscape)
}

/// Returns the text, decoded once, twice and so on, until it no longer changes.
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

/// Decodes a segment of a text that [`decodings`] accepted; returns it with the number of decodings
/// after which it is a dot segment.
fn decode_fully(segment: &str) -> (Cow<'_, str>, u8) {
    let mut text = Cow::Borrowed(segment);
    for round in 0..FOLDED {
        if is_dots(&text) {
            return (text, round);
        }
        if !text.contains('%') {
            break;
        }
        text = Cow::Owned(percent_decode_str(&text).decode_utf8_lossy().into_owned());
    }
    (text, NO_DOTS)
}

fn is_dots(text: &str) -> bool {
    matches!(text, "." | "..")
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

/// Returns the segments between slashes of either kind, without `;parameters`, empty segments and
/// dot segments.
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
