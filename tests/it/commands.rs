//! The command line: help, health check, completions, the manual page.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::support::*;

const COMMANDS: [&str; 9] =
    ["run", "demo", "sandbox", "check", "redact", "schema", "healthcheck", "completions", "man"];

fn said(arguments: &[&str]) -> String {
    let run = run_binary(arguments, b"");
    assert_eq!(run.code, Some(0), "{arguments:?}: {run:#?}");
    run.stdout
}

/// Pipes `input` into an installed program; `None` if it is not installed.
fn through(program: &str, arguments: &[&str], input: &str) -> Option<(bool, String)> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("MANWIDTH", "80")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn every_help_fits_80_by_24() {
    let mut all = vec![vec!["--help"], vec!["-h"]];
    all.extend(COMMANDS.iter().map(|command| vec![*command, "--help"]));
    for arguments in all {
        let run = run_binary_with(&[("COLUMNS", "80")], &arguments, b"");
        assert_eq!(run.code, Some(0), "{arguments:?}: {run:#?}");
        let help = run.stdout;
        assert!(help.lines().count() <= 24, "{arguments:?}: {help}");
        let wide = help.lines().find(|line| line.chars().count() > 80);
        assert!(wide.is_none(), "{arguments:?}: {wide:?}");
    }
}

#[test]
fn version_is_one_line() {
    let number = format!("telecomx-gateway {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(said(&["-V"]), format!("{number}\n"));
    let version = said(&["--version"]);
    let rest = version.strip_prefix(&number).expect("the number").trim_end();
    let features = match (cfg!(feature = "fips"), cfg!(feature = "otlp")) {
        (true, true) => "fips otlp",
        (true, false) => "fips",
        (false, true) => "otlp",
        (false, false) => "none",
    };
    assert!(!rest.contains('\n'), "{version}");
    let commit = rest.strip_prefix(" (commit ").and_then(|rest| rest.split(',').next());
    let is_repository = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".git").exists();
    let is_named = commit.is_some_and(|commit| {
        commit.len() == 12 && commit.bytes().all(|digit| digit.is_ascii_hexdigit())
    });
    assert!(is_named || (commit == Some("unknown") && !is_repository), "{version}");
    assert!(rest.ends_with(&format!(", features: {features}, allocator: mimalloc)")), "{version}");
}

#[test]
fn output_into_a_pipe_has_no_colours() {
    let wrong: [&[&str]; 4] =
        [&["--help"], &["run", "--help"], &["nonsense"], &["check", "-c", "/nowhere"]];
    for arguments in wrong {
        let run = run_binary(arguments, b"");
        assert!(
            !format!("{}{}", run.stdout, run.stderr).contains('\u{1b}'),
            "{arguments:?}: {run:#?}"
        );
    }
}

#[test]
fn help_on_a_terminal_has_colours_unless_no_color() {
    // script(1) runs a command on a new terminal.
    let on_a_terminal = |variables: &str| {
        let command =
            format!("{variables} TERM=xterm {} --help", env!("CARGO_BIN_EXE_telecomx-gateway"));
        through("script", &["-qec", &command, "/dev/null"], "")
    };
    let (Some((good, coloured)), Some((_, plain))) =
        (on_a_terminal("env -u NO_COLOR"), on_a_terminal("env NO_COLOR=1"))
    else {
        println!(
            "skipped: help_on_a_terminal_has_colours_unless_no_color: script is not installed"
        );
        return;
    };
    assert!(good && coloured.contains("\u{1b}["), "{coloured:?}");
    assert!(plain.contains("Usage:") && !plain.contains('\u{1b}'), "{plain:?}");
}

#[test]
fn healthcheck_follows_the_gateways_readiness() {
    let origin = Origin::start();
    let mut gateway = Gateway::start(&origin);
    let config = gateway.config_file().display().to_string();
    let well = run_binary(&["healthcheck", "-c", &config], b"");
    assert_eq!((well.code, well.stdout.as_str()), (Some(0), ""), "{well:#?}");
    // Dropping the gateway removes its folder.
    let text = std::fs::read_to_string(&config).expect("its configuration");
    assert_eq!(gateway.terminate().code, Some(0));
    let dir = TempDir::new();
    let config = dir.write("gateway.toml", &text).display().to_string();
    let gone = run_binary(&["healthcheck", "-c", &config], b"");
    assert_eq!(gone.code, Some(1), "{gone:#?}");
    assert!(gone.stderr.contains("no response from the admin listener"), "{gone:#?}");
}

#[test]
fn healthcheck_fails_while_the_gateway_is_not_ready() {
    let draining = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = draining.local_addr().expect("its address");
    let answering = std::thread::spawn(move || {
        let (mut caller, _) = draining.accept().expect("a caller");
        let mut lines = BufReader::new(caller.try_clone().expect("a descriptor")).lines();
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        caller
            .write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            .expect("it reads");
    });
    let dir = TempDir::new();
    let text =
        format!("[admin]\nlisten = \"{address}\"\n[upstream]\nurl = \"http://127.0.0.1:1\"\n");
    let config = dir.write("gateway.toml", &text).display().to_string();
    let unwell = run_binary(&["healthcheck", "-c", &config], b"");
    assert_eq!(unwell.code, Some(1), "{unwell:#?}");
    assert!(unwell.stderr.contains("not ready") && unwell.stderr.contains("503"), "{unwell:#?}");
    answering.join().expect("it answered");
}

#[test]
fn completions_contain_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = said(&["completions", shell]);
        for command in COMMANDS {
            assert!(text.contains(command), "{shell} does not complete {command}");
        }
    }
    assert_eq!(run_binary(&["completions", "csh"], b"").code, Some(2));
}

#[test]
fn bash_completes_a_command_and_its_options() {
    let script = said(&["completions", "bash"]);
    // As bash does at the tab key: the words, the index of the current one, the registered
    // function.
    let ask = |words: &str, at: usize| {
        let asked = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={at}\n\
             function=$(complete -p telecomx-gateway | grep -oE -- '-F [^ ]+') && ${{function#-F }} telecomx-gateway \"${{COMP_WORDS[{at}]}}\" \"${{COMP_WORDS[{at} - 1]}}\"\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        );
        let (good, answer) =
            through("bash", &[], &asked).expect("bash, which the scripts need too");
        assert!(good, "{answer}");
        answer
    };
    let commands = ask("telecomx-gateway he", 1);
    assert!(commands.lines().any(|line| line == "healthcheck"), "{commands}");
    let options = ask("telecomx-gateway check --", 2);
    assert!(options.lines().any(|line| line == "--explain"), "{options}");
}

#[test]
fn manual_page_is_valid_and_lists_every_command() {
    let page = said(&["man"]);
    let Some((good, text)) = through("man", &["--warnings", "-E", "UTF-8", "-l", "-"], &page)
    else {
        println!("skipped: manual_page_is_valid_and_lists_every_command: man is not installed");
        return;
    };
    assert!(good && !text.contains("warning"), "{text}");
    for part in
        COMMANDS.iter().chain(&["EXIT STATUS", "SIGNALS", "78", "--explain", "config/gateway.toml"])
    {
        assert!(text.contains(part), "{part} is missing: {text}");
    }
}
