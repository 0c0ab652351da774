//! What the service manager is told (sd_notify(3)), where there is one: `Type=notify-reload` of systemd waits for these.
//! Without `NOTIFY_SOCKET` in the environment nothing is said to anybody.

use std::time::Duration;

use sd_notify::{NotifyState, notify};

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = notify(states) {
        tracing::warn!(%error, "failed to notify the service manager");
    }
}

/// It serves, and what it does in a few words.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload begins; `ready` tells its end.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("reloading the configuration")]),
        Err(error) => tracing::warn!(%error, "failed to notify the service manager of a reload"),
    }
}

/// It stops.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing requests under way")]);
}

/// That process is the service from now on.
pub fn main_process(id: u32) {
    let status = if id == std::process::id() { "serves" } else { "handed over to its successor" };
    tell(&[NotifyState::MainPid(id), NotifyState::Status(status)]);
}

/// How often a sign of life is waited for, if at all.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// A sign of life.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}
