//! The manual page, generated from the command line arguments.

use clap::Command;
use clap_mangen::roff::{Roff, bold, italic, roman};

/// Sections that clap does not generate. `docs/CONFIGURATION.md` describes the configuration.
const EXIT_STATUS: [(&str, &str); 4] = [
    ("0", "Success. For a server: every request was finished, or SIGINT stopped it."),
    (
        "1",
        "Failure while running, or requests were aborted after server.drain. For healthcheck: not ready.",
    ),
    ("2", "Invalid command line."),
    ("78", "Invalid configuration, including a file that is missing or cannot be read."),
];
const SIGNALS: [(&str, &str); 4] = [
    ("HUP", "Reload the configuration. If it has errors, the current one stays in force."),
    (
        "TERM",
        "Stop accepting connections, finish requests under way for at most server.drain, then exit.",
    ),
    ("INT", "Exit at once."),
    ("QUIT", "Like TERM, for a process whose successor has taken over."),
];
const FILES: [(&str, &str); 2] = [
    (
        "config/gateway.toml",
        "Default configuration file, relative to the working directory; see -c.",
    ),
    ("/etc/telecomx-gateway/gateway.toml", "Configuration file of the packaged service."),
];

/// Returns the manual page in roff.
pub(super) fn manual_page(mut command: Command) -> String {
    command.build();
    let name = command.get_name().to_owned();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let mut roff = Roff::new();
    let version = format!("{name} {}", command.get_version().unwrap_or_default());
    roff.control("TH", [name.as_str(), "1", "", version.as_str(), ""]);
    roff.control("SH", ["NAME"]).text([roman(format!("{name} - {about}"))]);
    roff.control("SH", ["SYNOPSIS"]).text([
        bold(&name),
        roman(" "),
        italic("COMMAND"),
        roman(" [options]"),
    ]);
    roff.control("SH", ["DESCRIPTION"]).text([roman(DESCRIPTION)]);
    roff.control("SH", ["COMMANDS"]);
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        command_section(&mut roff, command);
    }
    section(&mut roff, "EXIT STATUS", &EXIT_STATUS);
    section(&mut roff, "SIGNALS", &SIGNALS);
    roff.control("SH", ["ENVIRONMENT"]);
    roff.control("TP", []).text([bold("TELECOMX_GATEWAY__TABLE__KEY")]).text([roman(ENVIRONMENT)]);
    section(&mut roff, "FILES", &FILES);
    roff.to_roff()
}

const DESCRIPTION: &str = "A caching reverse proxy for the TelecomX API. It caches GET /customer/{id}/name per \
    caller, removes \
    integration secrets from responses for access levels below RESELLER, and forwards all other requests.";
const ENVIRONMENT: &str = "Overrides a key of the configuration file: TELECOMX_GATEWAY__CACHE__TTL=30s sets ttl of [cache].";

fn command_section(roff: &mut Roff, command: &Command) {
    roff.control("SS", [command.get_name()]);
    roff.text([roman(command.get_about().map(ToString::to_string).unwrap_or_default())]);
    let shown = command
        .get_arguments()
        .filter(|argument| argument.get_id() != "help" && !argument.is_hide_set());
    for argument in shown {
        let mut term = Vec::new();
        if let Some(short) = argument.get_short() {
            term.extend([bold(format!("-{short}")), roman(", ")]);
        }
        if let Some(long) = argument.get_long() {
            term.push(bold(format!("--{long}")));
        }
        if argument.get_action().takes_values() {
            let value = argument.get_value_names().and_then(<[_]>::first).map(ToString::to_string);
            term.extend([
                roman(if term.is_empty() { "" } else { " " }),
                italic(value.unwrap_or_default()),
            ]);
        }
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
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
