//! Behaviour of the crate from outside: golden documents, corpora, threats, and properties that are
//! compared with a second, naive implementation.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that panics has failed, in what tests share as well"
)]

mod bounds;
mod corpus;
mod golden;
mod oracle;
mod policy;
mod properties;
mod spelling;
mod threats;
