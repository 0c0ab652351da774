//! Shell completions, generated from the command line arguments.

use clap::Command;

/// Returns the completion script of a shell.
pub(super) fn completions(shell: clap_complete::Shell, mut command: Command) -> String {
    let mut text = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, &name, &mut text);
    let text = String::from_utf8_lossy(&text);
    // In the script for bash the hyphen of the name is written in two ways, so that options of a
    // command would not be completed (clap-rs/clap#6421, open as of clap_complete 4.6.11).
    text.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"))
}
