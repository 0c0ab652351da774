//! The command line: arguments, configuration, exit codes.

mod fleet;
mod health;
mod pages;

use std::fmt;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};

use crate::api::AccessLevel;
use crate::config::{self, Config};
use crate::crypto;
use crate::process;
use crate::redact::{Policy, redact};
use crate::sandbox::{self, Sandbox};
use crate::server::{self, Source, Start, StartError, Telemetry};
use crate::telemetry::{self, Metrics};

/// Failed while running.
const FAILED: u8 = 1;
/// Wrong usage.
const USAGE: u8 = 2;
/// Wrong configuration (`EX_CONFIG` of sysexits).
const CONFIGURATION: u8 = 78;

/// The configuration of `demo`, which needs no file.
const DEMO: &str = include_str!("../config/demo.toml");
const DEMO_NAME: &str = "config/demo.toml";

#[derive(Parser)]
#[command(name = "telecomx-gateway", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway
    Run {
        /// Configuration file
        #[arg(short, long, value_name = "FILE", default_value = "config/gateway.toml")]
        config: PathBuf,
        /// Take over the listening sockets of the running process, which finishes its requests and exits
        #[arg(long)]
        upgrade: bool,
    },
    /// Run the gateway on 127.0.0.1:8080 in front of a bundled sandbox of the API, without network access
    Demo {
        /// Run N gateways that share one Redis, on free ports; redis-server is started if it is installed
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(2..=9))]
        fleet: Option<u8>,
    },
    /// Run only the sandbox of the API
    Sandbox {
        /// Address to listen on
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
        listen: SocketAddr,
        /// Delay of each response in milliseconds
        #[arg(long, value_name = "MS", default_value_t = 0)]
        latency: u64,
    },
    /// Validate a configuration file, or explain what it does
    Check {
        /// Configuration file
        #[arg(short, long, value_name = "FILE", default_value = "config/gateway.toml")]
        config: PathBuf,
        /// Describe what is cached, redacted, forwarded and limited
        #[arg(long)]
        explain: bool,
    },
    /// Redact a JSON document from standard input as the gateway would
    Redact {
        /// Configuration file
        #[arg(short, long, value_name = "FILE", default_value = "config/gateway.toml")]
        config: PathBuf,
        /// Access level of the reader, such as VIEWER
        #[arg(long, value_name = "ROLE")]
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
        /// Configuration file
        #[arg(short, long, value_name = "FILE", default_value = "config/gateway.toml")]
        config: PathBuf,
    },
    /// Print shell completions
    Completions {
        /// Name of the shell
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man,
}

/// The exit code and the message of a failed command.
struct Ending(u8, String);

impl Ending {
    fn failed(what: impl fmt::Display) -> Self {
        Ending(FAILED, format!("telecomx-gateway: {what}"))
    }

    fn configuration(what: impl fmt::Display) -> Self {
        Ending(CONFIGURATION, what.to_string())
    }
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { USAGE } else { 0 };
            // The reader may have closed the pipe.
            let _ = error.print();
            return code.into();
        }
    };
    crypto::install_provider();
    let ended = obey(arguments.command);
    // Log lines precede the error message.
    telemetry::flush();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(Ending(code, message)) => {
            let _ = writeln!(std::io::stderr(), "{message}");
            code.into()
        }
    }
}

fn obey(command: Command) -> Result<(), Ending> {
    match command {
        Command::Run { config, upgrade } => {
            process::ignore_signals_until_serving().map_err(Ending::failed)?;
            let loaded = load(&config)?;
            let start = if upgrade { Start::Upgrade } else { Start::Fresh };
            serve(loaded, Box::new(move || load(&config).map_err(|Ending(_, problems)| problems)), start)
        }
        Command::Demo { fleet: None } => demo(),
        Command::Demo { fleet: Some(size) } => fleet::run(size.into()),
        Command::Sandbox { listen, latency } => {
            let options = sandbox::Options { latency: Duration::from_millis(latency), ..sandbox::Options::default() };
            let (serving, address) = open_sandbox(listen, options)?;
            say(format_args!("sandbox of the API on http://{address}/ (GET it for help)"))?;
            serving.join().map_err(|_| Ending::failed("the sandbox stopped"))?.map_err(Ending::failed)
        }
        Command::Check { config, explain } => {
            let loaded = load(&config)?;
            server::check(&loaded).map_err(Ending::configuration)?;
            for warning in server::warnings(&loaded) {
                // On standard error, so that scripts read only the result.
                let _ = writeln!(std::io::stderr(), "{}: warning: {warning}", config.display());
            }
            if explain {
                say(config::explain(&loaded).trim_end())
            } else {
                say(format_args!("{}: ok", config.display()))
            }
        }
        Command::Redact { config, role } => redact_input(&load(&config)?, role),
        Command::Schema { markdown: true } => say(config::reference().trim_end()),
        Command::Schema { markdown: false } => {
            let schema = serde_json::to_string_pretty(&config::schema()).map_err(Ending::failed)?;
            say(schema)
        }
        Command::Healthcheck { config } => health::ask(load(&config)?.admin.listen).map_err(Ending::failed),
        Command::Completions { shell } => say(pages::completions(shell, Arguments::command()).trim_end()),
        Command::Man => say(pages::manual(Arguments::command()).trim_end()),
    }
}

/// Writes lines to standard output. A reader that closed the pipe is not an error.
fn say(what: impl fmt::Display) -> Result<(), Ending> {
    match writeln!(std::io::stdout().lock(), "{what}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Ending::failed(error)),
        _ => Ok(()),
    }
}

fn load(path: &Path) -> Result<Config, Ending> {
    config::load(
        path,
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    )
    .map_err(Ending::configuration)
}

fn serve(config: Config, source: Source, start: Start) -> Result<(), Ending> {
    let metrics = Arc::new(Metrics::new().map_err(Ending::failed)?);
    let levels = telemetry::install(&config.log, &metrics).map_err(Ending::failed)?;
    server::run(config, source, Telemetry { levels, metrics }, start).map_err(|error| match error {
        StartError::Configuration(what) => Ending::configuration(what),
        StartError::Environment(what) => Ending::failed(what),
    })
}

fn redact_input(config: &Config, role: AccessLevel) -> Result<(), Ending> {
    let policy = Policy::compile(&config.redaction.rules()).map_err(|errors| {
        Ending::configuration(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    })?;
    let mut document = Vec::new();
    std::io::stdin().lock().read_to_end(&mut document).map_err(Ending::failed)?;
    let redacted = redact(&policy, role, document.into())
        .map_err(|refusal| Ending::failed(format_args!("cannot redact the document safely: {refusal}")))?;
    let mut output = std::io::stdout().lock();
    output.write_all(redacted.bytes()).and_then(|()| output.write_all(b"\n")).map_err(Ending::failed)
}

type Serving = std::thread::JoinHandle<std::io::Result<()>>;

/// Serves the sandbox in another thread; returns its address.
fn open_sandbox(address: SocketAddr, options: sandbox::Options) -> Result<(Serving, SocketAddr), Ending> {
    let busy = |error| Ending::failed(server::cannot_listen(address, &error));
    let listener = std::net::TcpListener::bind(address).map_err(busy)?;
    listener.set_nonblocking(true).map_err(busy)?;
    let address = listener.local_addr().map_err(busy)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(Ending::failed)?;
    let serving = std::thread::spawn(move || {
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            Sandbox::new(options).serve(listener).await
        })
    });
    Ok((serving, address))
}

fn demo() -> Result<(), Ending> {
    let parse = || config::parse(DEMO_NAME, DEMO, []).map_err(|problems| problems.to_string());
    let config = parse().map_err(Ending::configuration)?;
    let url = config.upstream.urls.first().ok_or_else(|| Ending::failed("the demo has no upstream.url"))?;
    let upstream = SocketAddr::new(url.host.parse().map_err(Ending::failed)?, url.port);
    let (_serving, _) = open_sandbox(upstream, sandbox::Options::default())?;
    say(demo_lines(&config))?;
    serve(config, Box::new(parse), Start::Fresh)
}

/// Commands to paste into another terminal.
fn demo_lines(config: &Config) -> String {
    let address = config.server.listen.first().map(ToString::to_string).unwrap_or_default();
    let (admin, customer) = (config.admin.listen, sandbox::DEMO_CUSTOMER);
    let name = format!("http://{address}/customer/{customer}/name");
    let token = |level: AccessLevel| {
        sandbox::demo_callers().iter().find(|caller| caller.role == level).map_or("", |caller| caller.token)
    };
    let curl = |level| format!("curl -si -H 'Authorization: Bearer {}'", token(level));
    let (viewer, owner) = (curl(AccessLevel::Viewer), curl(AccessLevel::Owner));
    let (reseller, administrator) = (curl(AccessLevel::Reseller), curl(AccessLevel::Admin));
    format!(
        "telecomx-gateway listens on http://{address}/ in front of a sandbox of the API; admin listener: http://{admin}/\n\
         Try in another terminal:\n\n\
         # VIEWER: a miss, then a hit; both without secrets\n\
         {viewer} {name}\n\
         {viewer} {name}\n\n\
         # with the entity tag of the response: 304\n\
         {viewer} -H \"If-None-Match: $({viewer} {name} | tr -d '\\r' | sed -n 's/^etag: //Ip')\" {name}\n\n\
         # RESELLER: the bytes of the API, cached separately\n\
         {reseller} {name}\n\n\
         # ADMIN\n\
         {administrator} {name}\n\n\
         # OWNER: an update is forwarded and invalidates the cache; VIEWER: a miss again\n\
         {owner} -X POST -d '{{\"name\":\"Andeby A/S\"}}' -H 'Content-Type: application/json' http://{address}/customer/{customer}\n\
         {viewer} {name}\n\n\
         # no token: 401 in the format of the API\n\
         curl -si {name}\n\n\
         # operators: status page http://{admin}/, metrics, statistics, and a purge of one customer\n\
         curl -s http://{admin}/metrics | grep '^telecomx_gateway_requests_total'\n\
         curl -s http://{admin}/stats\n\
         curl -si -X DELETE http://{admin}/cache/customers/{customer}\n"
    )
}
