//! Faults of a configuration: location, key, cause and remedy. All faults are reported at once.

use std::fmt;

/// The faults of a configuration; never empty. `Display` writes one per line, in the order of the
/// file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

/// A fault for which a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub location: Location,
    /// Path of the key, such as `cache.ttl`; empty if the fault concerns no key.
    pub key: String,
    /// What is wrong. Never the value of a key that may hold a credential.
    pub cause: String,
    /// How to fix it; empty if `cause` is sufficient.
    pub remedy: String,
}

/// A setting that works but is probably a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Path of the key, such as `server.listen`.
    pub key: &'static str,
    /// What is dangerous.
    pub cause: String,
    /// How to avoid it.
    pub remedy: &'static str,
}

/// Where a value is set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Location {
    /// The file as a whole, for example for a missing key.
    File { file: String },
    /// A line of the file. Line and column count from 1; columns are characters.
    Line { file: String, line: usize, column: usize },
    /// An environment variable.
    Variable { name: String },
}

/// A fault of a value whose location is not known yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub cause: String,
    pub remedy: String,
}

impl Fault {
    pub(super) fn new(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Fault { cause: cause.into(), remedy: remedy.into() }
    }
}

impl Problem {
    pub(super) fn new(location: Location, key: impl Into<String>, fault: Fault) -> Self {
        let Fault { cause, remedy } = fault;
        Problem { location, key: key.into(), cause, remedy }
    }
}

impl Problems {
    /// Returns `Err` with all problems in the order of their locations, or `Ok` without any.
    pub(super) fn into_result(mut problems: Vec<Problem>) -> Result<(), Problems> {
        if problems.is_empty() {
            return Ok(());
        }
        problems.sort_by(|a, b| a.location.cmp(&b.location));
        Err(Problems(problems))
    }

    pub(super) fn one(problem: Problem) -> Self {
        Problems(vec![problem])
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Problem> {
        self.0.iter()
    }
}

impl Location {
    /// The line of the file, if the location is one.
    pub fn line(&self) -> Option<usize> {
        match self {
            Location::Line { line, .. } => Some(*line),
            Location::File { .. } | Location::Variable { .. } => None,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::File { file } => f.write_str(file),
            Location::Line { file, line, .. } => write!(f, "{file}:{line}"),
            Location::Variable { name } => f.write_str(name),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { location, key, cause, remedy } = self;
        write!(f, "{location}: ")?;
        if !key.is_empty() {
            write!(f, "{key}: ")?;
        }
        f.write_str(cause)?;
        if !remedy.is_empty() {
            write!(f, "; {remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Warning { key, cause, remedy } = self;
        write!(f, "{key}: {cause}; {remedy}")
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
