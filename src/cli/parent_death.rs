//! Processes and directories of a demo that end with it, however it ends: also by SIGKILL, which
//! runs no destructor.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::clock;

/// Pause between two attempts to remove a directory.
const RETRY_DELAY: Duration = Duration::from_millis(50);
/// Maximum time for the attempts: a process that still writes to the directory is about to end.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The command that runs a program which the kernel kills when this process ends. This program sets
/// the signal and then becomes the other one, because only a process itself can set it.
pub(super) fn command(program: impl AsRef<OsStr>) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("with-parent").arg(std::process::id().to_string()).arg("--").arg(program);
    Ok(command)
}

/// Replaces this process by the program. Returns only with an error.
pub(super) fn exec(parent: u32, program: &OsStr, arguments: &[OsString]) -> io::Error {
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    // The parent may have ended before the signal was set.
    let is_alive = getppid().is_some_and(|id| id.as_raw_nonzero().get().cast_unsigned() == parent);
    if !is_alive {
        return io::Error::other("the parent process ended");
    }
    Command::new(program).args(arguments).exec()
}

/// Starts a process that removes a directory when this process ends. It has a separate process
/// group, so that Ctrl-C does not end it first.
pub(super) fn remove_directory_at_end(directory: &Path) -> io::Result<std::process::Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("remove-at-end").arg(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.process_group(0).spawn()
}

/// Waits for the end of standard input, a pipe from the process that owns the directory, and
/// removes the directory.
pub(super) fn remove_at_end(directory: &Path) {
    let _ = io::stdin().lock().read_to_end(&mut Vec::new());
    let deadline = clock::now() + REMOVAL_TIMEOUT;
    while directory.exists()
        && std::fs::remove_dir_all(directory).is_err()
        && clock::now() < deadline
    {
        pause(RETRY_DELAY);
    }
}

#[expect(clippy::disallowed_methods, reason = "this thread serves no request")]
pub(super) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
