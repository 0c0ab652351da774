//! What is wrong with a configuration, said so that the operator can mend it without opening another page: where, which
//! key, what is wrong, what would be right. All problems of a file are told at once.

use std::fmt;

/// Everything that is wrong; never empty. `Display` writes a line for each, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// The key's path, such as `cache.ttl`; empty where no key is concerned.
    pub key: String,
    /// Never the value of a key that may hold a credential.
    pub wrong: String,
    /// What would be right; empty where `wrong` says it all.
    pub right: String,
}

/// Where something was configured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Somewhere in the file: it has no line, as with a key that is missing.
    File { file: String },
    /// Line and column count from 1; columns are characters.
    Line { file: String, line: usize, column: usize },
    /// An environment variable.
    Variable { name: String },
}

/// What is wrong with a value, before it is known where the value stands.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub wrong: String,
    pub right: String,
}

impl Wrong {
    pub(super) fn new(wrong: impl Into<String>, right: impl Into<String>) -> Self {
        Wrong { wrong: wrong.into(), right: right.into() }
    }
}

impl Problem {
    pub(super) fn new(place: Place, key: impl Into<String>, Wrong { wrong, right }: Wrong) -> Self {
        Problem { place, key: key.into(), wrong, right }
    }
}

impl Problems {
    /// `Err` with all of them, in the order of their places, or `Ok` when there are none.
    pub(super) fn none_or(mut problems: Vec<Problem>) -> Result<(), Problems> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by(|a, b| a.place.cmp(&b.place));
        Err(Problems(problems))
    }

    pub(super) fn one(problem: Problem) -> Self {
        Problems(vec![problem])
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.0.iter()
    }
}

impl Place {
    /// The line in the file, where there is one.
    pub fn line(&self) -> Option<usize> {
        match self {
            Place::Line { line, .. } => Some(*line),
            Place::File { .. } | Place::Variable { .. } => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { file } => f.write_str(file),
            Place::Line { file, line, .. } => write!(f, "{file}:{line}"),
            Place::Variable { name } => f.write_str(name),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { place, key, wrong, right } = self;
        write!(f, "{place}: ")?;
        if !key.is_empty() {
            write!(f, "{key}: ")?;
        }
        f.write_str(wrong)?;
        if !right.is_empty() {
            write!(f, "; {right}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
