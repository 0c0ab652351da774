//! Messages to the service manager (sd_notify(3)), which `Type=notify-reload` of systemd waits for.
//! Without `NOTIFY_SOCKET` in the environment they are not sent.

use std::time::Duration;

use sd_notify::NotifyState;

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "failed to notify the service manager");
    }
}

/// Reports that the process serves, with a status line.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Reports that a reload began; [`ready`] reports its end.
pub fn reloading() {
    let status = NotifyState::Status("reloading the configuration");
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now, status]),
        Err(error) => {
            tracing::warn!(%error, "failed to notify the service manager of a reload");
        }
    }
}

/// Margin beyond the drain before the service manager may kill the process: the log is written in
/// it.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Reports that the process stops, and for how long it may drain: the service manager must not kill
/// it before.
pub fn stopping(drain: Duration) {
    let limit = format!("EXTEND_TIMEOUT_USEC={}", (drain + STOP_MARGIN).as_micros());
    let status = NotifyState::Status("finishing requests under way");
    notify(&[NotifyState::Stopping, NotifyState::Custom(&limit), status]);
}

/// Reports the process that is the service from now on.
pub fn main_process(id: u32) {
    let is_own = id == std::process::id();
    let status = if is_own { "serves" } else { "handed over to its successor" };
    notify(&[NotifyState::MainPid(id), NotifyState::Status(status)]);
}

/// The watchdog interval; `None` if the service manager expects no keep-alive.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Sends a keep-alive to the watchdog.
pub fn alive() {
    notify(&[NotifyState::Watchdog]);
}
