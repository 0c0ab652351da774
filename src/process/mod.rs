//! The process: signals, the drain, the upgrade, and the service manager.

mod drain;
mod handover;
mod port_owner;
mod signals;
pub mod systemd;

pub use drain::{InFlight, Lifecycle, Stop};
pub use handover::{ChangeReports, Predecessor, PredecessorChanges, UpgradeSocket};
pub use port_owner::port_owner;
pub use signals::{SignalActions, SignalWatch, ignore_signals_until_serving};
