//! Which objects of a change log have to do with a root.
//!
//! An entry of the log names what was changed in one place and holds the values in others:
//! `{"path": "integrations.billing.economic.agreementGrantToken", "oldValue": "...", "newValue": "..."}`. The members may
//! come in any order and the path may be an array of names, so the document is read once before it is redacted, only to
//! note where a root is mentioned.

use super::names::Names;
use super::reader::{Reader, Value};
use super::refusal::Refusal;

/// Where an object mentions a root.
#[derive(Clone, Copy, Default)]
pub(super) struct Mention {
    /// In a name of its own, or in a string of its own, arrays being transparent. Counts for all below it as well.
    pub here: bool,
    /// In an object somewhere below it.
    pub below: bool,
}

/// One [`Mention`] for the document and then one for each of its objects, in the order in which they open.
pub(super) fn find_mentions(document: &[u8], names: &Names) -> Result<Vec<Mention>, Refusal> {
    let mut search =
        Search { reader: Reader::new(document)?, names, mentions: vec![Mention::default()], scratch: Vec::new() };
    search.value(0)?;
    search.reader.end()?;
    Ok(search.mentions)
}

struct Search<'d, 'p> {
    reader: Reader<'d>,
    names: &'p Names,
    mentions: Vec<Mention>,
    scratch: Vec<u8>,
}

impl Search<'_, '_> {
    /// Reads a value that belongs to the object with this index.
    fn value(&mut self, owner: usize) -> Result<(), Refusal> {
        match self.reader.value()? {
            Value::Object(mut object) => {
                let index = self.mentions.len();
                self.mentions.push(Mention::default());
                while let Some(name) = self.reader.next_member(&mut object)? {
                    if self.names.mentions_root(name.text.decoded(&mut self.scratch)) {
                        self.mentions[index].here = true;
                    }
                    self.value(index)?;
                }
                let Mention { here, below } = self.mentions[index];
                self.mentions[owner].below |= here || below;
            }
            Value::Array(mut array) => {
                while self.reader.next_element(&mut array)? {
                    self.value(owner)?;
                }
            }
            Value::String(text) => {
                if self.names.mentions_root(text.decoded(&mut self.scratch)) {
                    self.mentions[owner].here = true;
                }
            }
            Value::Bare(_) => {}
        }
        Ok(())
    }
}
