//! Output of the redaction. Most of it is identical to the document; such a stretch is recorded and
//! copied at once when it ends.

use std::ops::Range;

/// Output so far: the bytes in `copied`, then those of the document in `stretch`.
pub(super) struct Output<'d> {
    document: &'d [u8],
    copied: Vec<u8>,
    stretch: Range<usize>,
}

impl<'d> Output<'d> {
    pub(super) fn new(document: &'d [u8]) -> Self {
        Output { document, copied: Vec::with_capacity(document.len()), stretch: 0..0 }
    }

    pub(super) fn len(&self) -> usize {
        self.copied.len() + self.stretch.len()
    }

    /// Writes a range of the document.
    pub(super) fn token(&mut self, range: Range<usize>) {
        if range.start == self.stretch.end {
            self.stretch.end = range.end;
        } else {
            self.end_stretch();
            self.stretch = range;
        }
    }

    /// Writes a punctuation character, which the document usually has at this position.
    pub(super) fn sign(&mut self, sign: u8) {
        if self.document.get(self.stretch.end) == Some(&sign) {
            self.stretch.end += 1;
        } else {
            self.text(&[sign]);
        }
    }

    /// Writes what the document does not hold.
    pub(super) fn text(&mut self, text: &[u8]) {
        self.end_stretch();
        self.copied.extend_from_slice(text);
    }

    /// Takes back all but the first `length` bytes.
    pub(super) fn truncate(&mut self, length: usize) {
        match length.checked_sub(self.copied.len()) {
            Some(rest) => self.stretch.end = self.stretch.end.min(self.stretch.start + rest),
            None => {
                self.copied.truncate(length);
                self.stretch.end = self.stretch.start;
            }
        }
    }

    /// The byte written in this place, if one was.
    pub(super) fn get(&self, place: usize) -> Option<u8> {
        match place.checked_sub(self.copied.len()) {
            Some(rest) => self.document[self.stretch.clone()].get(rest).copied(),
            None => self.copied.get(place).copied(),
        }
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.end_stretch();
        self.copied
    }

    fn end_stretch(&mut self) {
        self.copied.extend_from_slice(&self.document[self.stretch.clone()]);
        self.stretch.start = self.stretch.end;
    }
}
