//! What a package installs beside the binary: completions of shells and the manual page, both from the arguments
//! themselves.

use clap::Command;
use clap_mangen::roff::{Roff, bold, italic, roman};

/// What the arguments do not tell. The configuration has a page of its own.
const EXIT_STATUS: [(&str, &str); 4] = [
    ("0", "It ended well: what was asked for was done; for a server, every request was finished, or an INT ended it."),
    ("1", "It failed while running, or requests were cut at the end of server.drain. healthcheck: not ready."),
    ("2", "Wrong usage."),
    ("78", "Wrong configuration, a missing or unreadable file included."),
];
const SIGNALS: [(&str, &str); 4] = [
    ("HUP", "Reads the configuration anew: all of it is taken over, or nothing."),
    ("TERM", "Takes no more connections, waits for requests in flight for server.drain at most, and ends."),
    ("INT", "Ends at once."),
    ("QUIT", "Ends as at TERM, for a process whose successor has taken over."),
];
const FILES: [(&str, &str); 2] = [
    ("config/gateway.toml", "The configuration, unless -c names another one. The packaged service names it."),
    ("/etc/telecomx-gateway/gateway.toml", "The configuration of the packaged service."),
];

/// The completions of a shell, to be sourced by it.
pub(super) fn completions(shell: clap_complete::Shell, mut command: Command) -> String {
    let mut text = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, &name, &mut text);
    let text = String::from_utf8_lossy(&text);
    // For bash, a hyphen in the name is written in two ways, and no option of a command would be found
    // (clap-rs/clap#6421, open as of clap_complete 4.6.11).
    text.replace(&name.replace('-', "__subcmd__"), &name.replace('-', "__"))
}

/// The manual page, as roff.
pub(super) fn manual(mut command: Command) -> String {
    command.build();
    let name = command.get_name().to_owned();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let mut roff = Roff::new();
    let version = format!("{name} {}", command.get_version().unwrap_or_default());
    roff.control("TH", [name.as_str(), "1", "", version.as_str(), ""]);
    roff.control("SH", ["NAME"]).text([roman(format!("{name} - {about}"))]);
    roff.control("SH", ["SYNOPSIS"]).text([bold(&name), roman(" "), italic("COMMAND"), roman(" [options]")]);
    roff.control("SH", ["DESCRIPTION"]).text([roman(DESCRIPTION)]);
    roff.control("SH", ["COMMANDS"]);
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        one_command(&mut roff, command);
    }
    section(&mut roff, "EXIT STATUS", &EXIT_STATUS);
    section(&mut roff, "SIGNALS", &SIGNALS);
    roff.control("SH", ["ENVIRONMENT"]);
    roff.control("TP", []).text([bold("TELECOMX_GATEWAY__TABLE__KEY")]).text([roman(ENVIRONMENT)]);
    section(&mut roff, "FILES", &FILES);
    roff.to_roff()
}

const DESCRIPTION: &str = "A reverse proxy in front of the TelecomX API. It answers GET /customer/{id}/name from memory, \
    separately for each caller, takes integration secrets out of answers for roles below RESELLER, and passes everything \
    else on.";
const ENVIRONMENT: &str = "Goes over a key of the file: TELECOMX_GATEWAY__CACHE__TTL=30s is ttl of [cache].";

fn one_command(roff: &mut Roff, command: &Command) {
    roff.control("SS", [command.get_name()]);
    roff.text([roman(command.get_about().map(ToString::to_string).unwrap_or_default())]);
    let written = command.get_arguments().filter(|argument| argument.get_id() != "help" && !argument.is_hide_set());
    for argument in written {
        let mut term = Vec::new();
        if let Some(short) = argument.get_short() {
            term.extend([bold(format!("-{short}")), roman(", ")]);
        }
        if let Some(long) = argument.get_long() {
            term.push(bold(format!("--{long}")));
        }
        if argument.get_action().takes_values() {
            let value = argument.get_value_names().and_then(<[_]>::first).map(ToString::to_string);
            term.extend([roman(if term.is_empty() { "" } else { " " }), italic(value.unwrap_or_default())]);
        }
        let defaults: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let mut help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        if argument.get_action().takes_values() && !defaults.is_empty() {
            help.push_str(&format!(" [default: {}]", defaults.join(" ")));
        }
        roff.control("TP", []).text(term).text([roman(help)]);
    }
}

fn section(roff: &mut Roff, title: &str, entries: &[(&str, &str)]) {
    roff.control("SH", [title]);
    for (term, text) in entries {
        roff.control("TP", []).text([bold(*term)]).text([roman(*text)]);
    }
}
