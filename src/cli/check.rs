//! `check`: validates a configuration file, prints its warnings, explains it, or compares it with
//! another one.

use std::io::Write;
use std::path::Path;

use super::{CommandError, check_connect, load, print_line};
use crate::config::{self, KeyChange, Loaded, Reload};
use crate::server;

/// What `check` does beyond the validation.
#[derive(Clone, Copy)]
pub(super) struct Options {
    /// Describe what the gateway does.
    pub explain: bool,
    /// Test the API and the listening addresses. Without it the command opens no connection.
    pub connect: bool,
}

/// Validates the file and prints its warnings.
///
/// # Errors
/// Every problem, one per line.
pub(super) fn run(path: &Path, options: Options) -> Result<(), CommandError> {
    let loaded = load(path)?;
    let chain_warnings = server::check(&loaded.config).map_err(|problems| {
        let problems = problems.to_string();
        let lines: Vec<String> = problems.lines().map(|line| loaded.locate(line)).collect();
        CommandError::config(lines.join("\n"))
    })?;
    for warning in warnings(&loaded, chain_warnings) {
        // Standard error, so that scripts read only the result.
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
    if options.explain {
        print_line(format_args!("{}\n", path.display()))?;
        print_line(config::explain(&loaded.config, &loaded.overrides).trim_end())?;
    }
    if options.connect {
        let results = check_connect::run(&loaded)?;
        for result in results {
            print_line(result)?;
        }
    }
    if options.explain { Ok(()) } else { print_line(format_args!("{}: ok", path.display())) }
}

/// The warnings about settings, secrets and certificate chains, each with its location.
fn warnings(loaded: &Loaded, chain_warnings: Vec<String>) -> Vec<String> {
    let settings = config::warnings(&loaded.config).into_iter().map(|warning| warning.to_string());
    let messages = settings.chain(server::warnings(&loaded.config)).chain(chain_warnings);
    messages.map(|message| loaded.locate(&message)).collect()
}

/// Prints the keys whose values differ between two files, and whether a reload applies the change.
///
/// # Errors
/// The problems of one of the files.
pub(super) fn diff(path: &Path, other: &Path) -> Result<(), CommandError> {
    // The files that `other` names may be on another machine.
    let read = |path| config::load_keys(path, std::env::vars_os()).map_err(CommandError::config);
    let (old, new) = (read(path)?, read(other)?);
    let changes = config::changes(&old.config, &new.config);
    if changes.is_empty() {
        return print_line(format_args!(
            "{} and {}: no differences",
            path.display(),
            other.display()
        ));
    }
    for KeyChange { key, old, new, reload } in changes {
        let show = |value: Option<String>| value.unwrap_or_else(|| "(not set)".to_owned());
        let effect = match reload {
            Reload::Applies => "a reload applies it",
            Reload::NeedsRestart => "needs a restart",
        };
        print_line(format_args!("{key}: {} -> {}; {effect}", show(old), show(new)))?;
    }
    Ok(())
}
