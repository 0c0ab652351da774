//! The configuration: file and environment in, checked values out. Raw input (`raw`) and checked
//! values ([`Config`]) are different types with one fallible step between them (`resolve`). A
//! configuration with a fault is refused as a whole, and all faults are reported at once. The
//! configuration holds paths of files with secrets, never their contents.
//!
//! Pure: no socket, no clock. Only [`load()`] and [`load_keys`] read files.

mod address;
mod check;
mod diagnostic;
mod duplicate_key;
mod explain;
mod load;
mod model;
mod pattern;
mod raw;
mod reference;
mod resolve;
mod schema;
mod schema_table;
mod suggestion;
mod units;
mod value_type;
mod values;
mod variables;
mod warnings;

#[cfg(test)]
mod example;
#[cfg(test)]
mod tests;

pub use address::is_loopback_origin;
pub use diagnostic::{Location, Problem, Problems, Warning};
pub use explain::explain;
pub use load::{Loaded, load, load_keys, parse, parse_listen_address};
pub use model::*;
pub use reference::reference;
pub use resolve::VariableOverride;
pub use schema::schema;
pub use schema_table::Reload;
pub use values::{KeyChange, changes, reload_of};
pub use warnings::warnings;
