//! The command line: arguments, configuration, exit codes.

mod check;
mod check_connect;
mod completions;
mod demo;
mod demo_cluster;
mod healthcheck;
mod manual_page;
mod parent_death;
mod status_line;
mod version;

use std::ffi::OsString;
use std::fmt;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::api::AccessLevel;
use crate::config::{self, Config, Loaded};
use crate::crypto;
use crate::process;
use crate::redact::{Policy, redact};
use crate::sandbox::{self, Sandbox};
use crate::server::{self, Source, Start, StartError, Telemetry};
use crate::telemetry::{self, Metrics};

/// Exit code of a failure while running.
const EXIT_FAILURE: u8 = 1;
/// Exit code of an invalid command line.
const EXIT_USAGE: u8 = 2;
/// Exit code of an invalid configuration (`EX_CONFIG` of sysexits).
const EXIT_CONFIG: u8 = 78;

/// Default configuration files: that of a working copy, then that of an installed package.
const DEFAULT_CONFIGS: [&str; 2] = ["config/gateway.toml", "/etc/telecomx-gateway/gateway.toml"];

#[derive(Parser)]
#[command(name = "telecomx-gateway", version, long_version = version::LONG, about)]
#[command(max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The option `-c`.
#[derive(Args)]
struct ConfigFile {
    /// Configuration file [default: config/gateway.toml, else /etc/telecomx-gateway/gateway.toml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// The given file, or the first default that exists, or else the last one.
    fn path(self) -> PathBuf {
        let [local, installed] = DEFAULT_CONFIGS.map(PathBuf::from);
        self.config.unwrap_or_else(|| if local.exists() { local } else { installed })
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway
    Run {
        #[command(flatten)]
        config: ConfigFile,
        /// Take over the listening sockets of the running process, which finishes its requests and
        /// exits
        #[arg(long)]
        upgrade: bool,
    },
    /// Run the gateway on 127.0.0.1:8080 in front of a bundled sandbox of the API, without network
    /// access
    Demo {
        /// Address of the gateway; the other listeners then use free ports
        #[arg(long, value_name = "ADDR", value_parser = config::parse_listen_address)]
        listen: Option<SocketAddr>,
        /// Run N gateways (2 to 9) with one Redis, on free ports; requires redis-server
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=9))]
        #[arg(conflicts_with = "listen")]
        fleet: Option<u8>,
    },
    /// Run only the sandbox of the API
    Sandbox {
        /// Address to listen on
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
        #[arg(value_parser = config::parse_listen_address)]
        listen: SocketAddr,
        /// Delay of each response in milliseconds
        #[arg(long, value_name = "MS", default_value_t = 0)]
        latency: u64,
    },
    /// Validate a configuration file, or explain what it does
    Check {
        #[command(flatten)]
        config: ConfigFile,
        /// Describe what is cached, redacted, forwarded and limited
        #[arg(long)]
        explain: bool,
        /// Also test DNS, connection, TLS and token validation of the API, and the listening
        /// addresses
        #[arg(long)]
        connect: bool,
        /// List the keys whose values differ in the file OTHER, and whether a reload applies them
        #[arg(long, value_name = "OTHER", conflicts_with_all = ["explain", "connect"])]
        diff: Option<PathBuf>,
    },
    /// Redact a JSON document from standard input as the gateway would
    Redact {
        #[command(flatten)]
        config: ConfigFile,
        /// Access level of the reader
        #[arg(long, value_name = "LEVEL", value_parser = access_level_parser())]
        role: AccessLevel,
    },
    /// Print the JSON Schema of the configuration, or its reference
    Schema {
        /// Print the reference as Markdown
        #[arg(long)]
        markdown: bool,
    },
    /// Check whether the gateway that runs with a configuration is ready
    Healthcheck {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Print shell completions
    Completions {
        /// Name of the shell
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
    /// Run a program that ends with the process PARENT
    #[command(hide = true)]
    WithParent { parent: u32, program: OsString, arguments: Vec<OsString> },
    /// Remove a directory when standard input ends
    #[command(hide = true)]
    RemoveAtEnd { directory: PathBuf },
}

/// Lists the access levels in the help and in errors.
fn access_level_parser() -> impl clap::builder::TypedValueParser<Value = AccessLevel> {
    PossibleValuesParser::new(AccessLevel::ALL.map(AccessLevel::as_str))
        .try_map(|level| level.parse::<AccessLevel>())
}

/// The exit code and the message of a failed command.
struct CommandError {
    exit_code: u8,
    message: String,
}

impl CommandError {
    fn failure(cause: impl fmt::Display) -> Self {
        CommandError { exit_code: EXIT_FAILURE, message: format!("telecomx-gateway: {cause}") }
    }

    fn config(problems: impl fmt::Display) -> Self {
        CommandError { exit_code: EXIT_CONFIG, message: problems.to_string() }
    }
}

/// Runs the command of the command line.
pub fn run() -> ExitCode {
    // Before anything else, since a signal would end the process.
    if std::env::args_os().nth(1).is_some_and(|command| command == "run")
        && let Err(error) = process::ignore_signals_until_serving()
    {
        let _ = writeln!(
            std::io::stderr(),
            "telecomx-gateway: cannot install signal handlers: {error}"
        );
        return EXIT_FAILURE.into();
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // The reader may have closed the pipe.
            let _ = error.print();
            return code.into();
        }
    };
    crypto::install_provider();
    let result = execute(arguments.command);
    // Log lines precede the error message.
    telemetry::flush();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(CommandError { exit_code, message }) => {
            let _ = writeln!(std::io::stderr(), "{message}");
            exit_code.into()
        }
    }
}

fn execute(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Run { config, upgrade } => {
            run_gateway(config.path(), if upgrade { Start::Upgrade } else { Start::Fresh })
        }
        Command::Demo { listen, fleet: None } => demo::run(listen),
        Command::Demo { fleet: Some(size), .. } => demo_cluster::run(size.into()),
        Command::Sandbox { listen, latency } => run_sandbox(listen, Duration::from_millis(latency)),
        Command::Check { config, diff: Some(other), .. } => check::diff(&config.path(), &other),
        Command::Check { config, explain, connect, diff: None } => {
            check::run(&config.path(), check::Options { explain, connect })
        }
        Command::Redact { config, role } => redact_input(&load(&config.path())?.config, role),
        Command::Schema { markdown: true } => print_line(config::reference().trim_end()),
        Command::Schema { markdown: false } => {
            let schema = serde_json::to_string_pretty(&config::schema());
            print_line(schema.map_err(CommandError::failure)?)
        }
        Command::Healthcheck { config } => {
            let admin = load(&config.path())?.config.admin.listen;
            healthcheck::check(admin).map_err(CommandError::failure)
        }
        Command::Completions { shell } => {
            print_line(completions::completions(shell, Arguments::command()).trim_end())
        }
        Command::Man => print_line(manual_page::manual_page(Arguments::command()).trim_end()),
        Command::WithParent { parent, program, arguments } => {
            Err(CommandError::failure(parent_death::exec(parent, &program, &arguments)))
        }
        Command::RemoveAtEnd { directory } => {
            parent_death::remove_at_end(&directory);
            Ok(())
        }
    }
}

/// Writes to standard output. A reader that closed the pipe is not an error.
fn print_line(text: impl fmt::Display) -> Result<(), CommandError> {
    let mut output = std::io::stdout().lock();
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CommandError::failure(error))
        }
        _ => Ok(()),
    }
}

fn load(path: &Path) -> Result<Loaded, CommandError> {
    config::load(path, std::env::vars_os()).map_err(CommandError::config)
}

fn run_gateway(path: PathBuf, start: Start) -> Result<(), CommandError> {
    let loaded = load(&path)?;
    let config = loaded.config.clone();
    let file = path.clone();
    let source: Source =
        Box::new(move || load(&path).map(|loaded| loaded.config).map_err(|error| error.message));
    let telemetry = install_telemetry(&config)?;
    let variables: Vec<&str> = loaded.overrides.iter().map(|setting| setting.key).collect();
    // The source of each setting: a variable of an image may override the file that an operator
    // mounted.
    tracing::info!(
        file = %file.display(),
        keys_from_variables = variables.join(", "),
        "read the configuration"
    );
    let located = |problems: &str| -> String {
        problems.lines().map(|line| loaded.locate(line)).collect::<Vec<_>>().join("\n")
    };
    server::run(config, source, telemetry, start, None).map_err(|error| match error {
        StartError::Configuration(problems) => CommandError::config(located(&problems)),
        StartError::Environment(cause) => CommandError::failure(cause),
    })
}

fn install_telemetry(config: &Config) -> Result<Telemetry, CommandError> {
    let metrics = Arc::new(Metrics::new().map_err(CommandError::failure)?);
    let levels = telemetry::install(&config.log, &metrics).map_err(CommandError::failure)?;
    Ok(Telemetry { levels, metrics })
}

fn redact_input(config: &Config, level: AccessLevel) -> Result<(), CommandError> {
    let policy = Policy::compile(&config.redaction.rules()).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        CommandError::config(lines.join("\n"))
    })?;
    let mut document = Vec::new();
    std::io::stdin().lock().read_to_end(&mut document).map_err(CommandError::failure)?;
    let redacted = redact(&policy, level, document.into()).map_err(|refusal| {
        CommandError::failure(format_args!("cannot redact the document safely: {refusal}"))
    })?;
    let mut output = std::io::stdout().lock();
    let written = output.write_all(redacted.bytes()).and_then(|()| output.write_all(b"\n"));
    written.map_err(CommandError::failure)
}

fn run_sandbox(listen: SocketAddr, latency: Duration) -> Result<(), CommandError> {
    let options = sandbox::Options { latency, ..sandbox::Options::default() };
    let (listener, address) = bind_sandbox(listen)?;
    let serving = serve_sandbox(listener, options)?;
    print_line(format_args!("sandbox of the API on http://{address}/ (GET it for help)"))?;
    let result = serving.join().map_err(|_| CommandError::failure("the sandbox stopped"))?;
    result.map_err(CommandError::failure)
}

type SandboxThread = std::thread::JoinHandle<std::io::Result<()>>;

fn bind_sandbox(address: SocketAddr) -> Result<(std::net::TcpListener, SocketAddr), CommandError> {
    let failure = |error| CommandError::failure(server::cannot_listen(address, &error));
    let listener = std::net::TcpListener::bind(address).map_err(failure)?;
    listener.set_nonblocking(true).map_err(failure)?;
    let address = listener.local_addr().map_err(failure)?;
    Ok((listener, address))
}

/// Serves the sandbox in another thread.
fn serve_sandbox(
    listener: std::net::TcpListener,
    options: sandbox::Options,
) -> Result<SandboxThread, CommandError> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).enable_all().build().map_err(CommandError::failure)?;
    Ok(std::thread::spawn(move || {
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            Sandbox::new(options).serve(listener).await
        })
    }))
}

/// The token of the demo caller with this access level.
fn demo_token(level: AccessLevel) -> &'static str {
    let mut callers = sandbox::demo_callers().iter();
    callers.find(|caller| caller.access_level == level).map_or("", |caller| caller.token)
}
