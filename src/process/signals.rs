//! The signals that stop the process, reload its configuration or upgrade it.

use async_trait::async_trait;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The reaction to each signal. None of these blocks: signals are handled one after the other.
#[async_trait]
pub trait SignalActions: Send + Sync {
    /// Waits until the process serves, and announces it.
    async fn announce_serving(&self);
    /// SIGHUP.
    fn reload(&self);
    /// SIGTERM.
    fn terminate(&self);
    /// SIGQUIT, sent by a successor.
    fn hand_over(&self);
    /// SIGUSR2.
    fn start_successor(&self);
}

/// Passes signals to their actions until the process ends.
pub struct SignalWatch<A>(pub A);

/// Ignores SIGHUP, SIGQUIT and SIGUSR2 until a [`SignalWatch`] handles them. By default each of
/// them ends a process that is still starting. tokio keeps the handlers that are installed here.
///
/// # Errors
/// The operating system refuses a handler.
pub fn ignore_signals_until_serving() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _context = runtime.enter();
    [SignalKind::hangup(), SignalKind::quit(), SignalKind::user_defined2()]
        .into_iter()
        .try_for_each(|kind| signal(kind).map(drop))
}

fn listen(kind: SignalKind) -> Option<Signal> {
    let installed = signal(kind);
    installed.map_err(|error| tracing::error!(%error, "failed to install a signal handler")).ok()
}

/// Waits for a signal; forever if its handler could not be installed.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

#[async_trait]
impl<A: SignalActions> ShutdownSignalWatch for SignalWatch<A> {
    async fn recv(&self) -> ShutdownSignal {
        let mut hangup = listen(SignalKind::hangup());
        let mut terminate = listen(SignalKind::terminate());
        let mut interrupt = listen(SignalKind::interrupt());
        let mut quit = listen(SignalKind::quit());
        let mut user_defined2 = listen(SignalKind::user_defined2());
        let announced = self.0.announce_serving();
        tokio::pin!(announced);
        let mut is_announced = false;
        loop {
            tokio::select! {
                () = &mut announced, if !is_announced => is_announced = true,
                () = received(&mut hangup) => self.0.reload(),
                () = received(&mut terminate) => self.0.terminate(),
                () = received(&mut quit) => self.0.hand_over(),
                () = received(&mut user_defined2) => self.0.start_successor(),
                () = received(&mut interrupt) => {
                    tracing::info!("stopped at once after SIGINT");
                    return ShutdownSignal::FastShutdown;
                }
            }
        }
    }
}
