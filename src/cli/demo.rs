//! `demo`: the gateway in front of the bundled sandbox of the API, in one process.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};

use super::{CommandError, bind_sandbox, demo_token, install_telemetry, print_line, serve_sandbox};
use crate::api::AccessLevel;
use crate::config::{self, Config};
use crate::sandbox;
use crate::server::{self, Addresses, Start, StartError};

/// The configuration, which needs no file.
const CONFIG: &str = include_str!("../../config/demo.toml");
const CONFIG_NAME: &str = "config/demo.toml";

/// Runs until a signal ends it. With `listen` only that address is fixed; the other listeners use
/// free ports.
pub(super) fn run(listen: Option<SocketAddr>) -> Result<(), CommandError> {
    let mut variables = Vec::new();
    let mut set = |key: &str, value: String| {
        variables.push((format!("TELECOMX_GATEWAY__{key}"), value));
    };
    let free_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let sandbox_address = match listen {
        Some(listen) => {
            set("SERVER__LISTEN", listen.to_string());
            set("ADMIN__LISTEN", free_port.to_string());
            free_port
        }
        None => default_sandbox_address()?,
    };
    // The sandbox is bound before the gateway, so that each printed command works at once.
    let (sandbox_listener, sandbox_address) =
        bind_sandbox(sandbox_address).map_err(suggest_listen)?;
    set("UPSTREAM__URL", format!("http://{sandbox_address}"));
    let parse = move || {
        config::parse(CONFIG_NAME, CONFIG, variables.clone())
            .map_err(|problems| problems.to_string())
    };
    let config = parse().map_err(CommandError::config)?;
    let telemetry = install_telemetry(&config)?;
    let on_listening = move |addresses: &Addresses| {
        if let Err(error) = serve_sandbox(sandbox_listener, sandbox::Options::default()) {
            return Err(error.message);
        }
        print_line(commands(addresses)).map_err(|error| error.message)
    };
    let result = server::run(
        config,
        Box::new(parse),
        telemetry,
        Start::Standalone,
        Some(Box::new(on_listening)),
    );
    result.map_err(|error| match error {
        StartError::Configuration(problems) => CommandError::config(problems),
        StartError::Environment(cause) => suggest_listen(CommandError::failure(cause)),
    })
}

/// The address of the sandbox in the shipped configuration.
fn default_sandbox_address() -> Result<SocketAddr, CommandError> {
    let config: Config = config::parse(CONFIG_NAME, CONFIG, []).map_err(CommandError::config)?;
    let url = config.upstream.urls.first();
    let url = url.ok_or_else(|| CommandError::failure("config/demo.toml has no upstream.url"))?;
    Ok(SocketAddr::new(url.host.parse().map_err(CommandError::failure)?, url.port))
}

fn suggest_listen(mut error: CommandError) -> CommandError {
    error.message += "; to use free ports, run `telecomx-gateway demo --listen 127.0.0.1:0`";
    error
}

/// Commands for another terminal.
fn commands(addresses: &Addresses) -> String {
    let address = addresses.plain.first().map(ToString::to_string).unwrap_or_default();
    let (admin, customer) = (addresses.admin, sandbox::DEMO_CUSTOMER);
    let name = format!("http://{address}/customer/{customer}/name");
    let curl = |level| format!("curl -si -H 'Authorization: Bearer {}'", demo_token(level));
    let viewer = curl(AccessLevel::Viewer);
    let owner = curl(AccessLevel::Owner);
    let reseller = curl(AccessLevel::Reseller);
    let administrator = curl(AccessLevel::Admin);
    let mut tokens = String::new();
    for caller in sandbox::demo_callers() {
        // Writing to a String cannot fail.
        let _ = writeln!(tokens, "#   {:14} {}", caller.access_level.as_str(), caller.token);
    }
    format!(
        "telecomx-gateway listens on http://{address}/ in front of a sandbox of the API\n\
         admin listener: http://{admin}/\n\
         Ctrl-C ends the demo.\n\n\
         Try in another terminal:\n\n\
         # a token for each access level\n\
         {tokens}\n\
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
         {owner} -X POST -d '{{\"name\":\"Andeby A/S\"}}' -H 'Content-Type: application/json' \
         http://{address}/customer/{customer}\n\
         {viewer} {name}\n\n\
         # no token: 401 in the format of the API\n\
         curl -si {name}\n\n\
         # operators: status page http://{admin}/, metrics, statistics, and a purge of one customer\n\
         curl -s http://{admin}/metrics | grep '^telecomx_gateway_requests_total'\n\
         curl -s http://{admin}/stats\n\
         curl -si -X DELETE http://{admin}/cache/customers/{customer}\n"
    )
}
