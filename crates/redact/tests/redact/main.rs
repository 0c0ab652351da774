//! What the redactor promises, seen from outside: golden documents, the corpora, every threat, and properties that are
//! held against a second, naive implementation.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics has failed, in what tests share as well")]

mod bounds;
mod corpus;
mod golden;
mod oracle;
mod policy;
mod properties;
mod spelling;
mod threats;
