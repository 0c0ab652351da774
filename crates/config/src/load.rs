//! The step from file and environment to a checked configuration.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use super::diagnostic::{Fault, Location, Problem, Problems};
use super::model::Config;
use super::resolve::{KeyLocations, Resolution, VariableOverride, resolve};
use super::{address, check, raw, variables};

/// A configuration with the sources of its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub config: Config,
    /// The keys that environment variables set, in the order of the shipped file.
    pub overrides: Vec<VariableOverride>,
    locations: KeyLocations,
}

impl Loaded {
    /// Where a key is set, or else its table; `None` for neither.
    pub fn location(&self, key: &str) -> Option<&Location> {
        self.locations.find(key)
    }

    /// Prepends the location of the key to a message `key: cause`; a message that begins with no
    /// key is unchanged.
    pub fn locate(&self, message: &str) -> String {
        let key = message.split(": ").next().unwrap_or_default();
        match self.location(key) {
            Some(location) => format!("{location}: {message}"),
            None => message.to_owned(),
        }
    }
}

/// Reads a file, applies environment variables (`TELECOMX_GATEWAY__CACHE__TTL`), and checks
/// everything, the files that it names included. A file that cannot be read is a problem too.
///
/// `env` may hold other variables: only those that are meant for the configuration are read.
pub fn load(
    path: &Path,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, Problems> {
    load_with(path, env, FileChecks::Enabled)
}

/// Reads a file like [`load`], without checking the files that it names.
pub fn load_keys(
    path: &Path,
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, Problems> {
    load_with(path, env, FileChecks::Skipped)
}

fn load_with(
    path: &Path,
    env: impl IntoIterator<Item = (OsString, OsString)>,
    file_checks: FileChecks,
) -> Result<Loaded, Problems> {
    let file_name = path.display().to_string();
    let unreadable = |cause: String, remedy: &str| {
        let location = Location::File { file: file_name.clone() };
        Problems::one(Problem::new(location, "", Fault::new(cause, remedy)))
    };
    let bytes = std::fs::read(path).map_err(|error| {
        let remedy = "pass a file that the gateway's user can read (-c FILE)";
        unreadable(format!("cannot read the file: {error}"), remedy)
    })?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid].iter().filter(|byte| **byte == b'\n').count() + 1;
        let byte = error.as_bytes().get(valid).copied().unwrap_or_default();
        let cause = format!("cannot read the file: line {line} is not UTF-8 (byte 0x{byte:02x})");
        unreadable(cause, "save the file in the encoding UTF-8")
    })?;
    let (env, problems) = decode_variables(env);
    read(&file_name, &text, &env, problems, file_checks)
}

/// Reads a text like [`load`]. Pure: the files that it names are not checked. `file_name` is for
/// messages.
pub fn parse(
    file_name: &str,
    text: &str,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, Problems> {
    let env: Vec<(String, String)> = env.into_iter().collect();
    read(file_name, text, &env, Vec::new(), FileChecks::Skipped).map(|loaded| loaded.config)
}

/// Parses the address of a listener, an IP address and a port.
///
/// # Errors
/// The fault and an example.
pub fn parse_listen_address(text: &str) -> Result<SocketAddr, String> {
    address::listen_address(text).map_err(|Fault { cause, remedy }| format!("{cause}; {remedy}"))
}

/// Decodes variables as UTF-8. One that is meant for the configuration and is not UTF-8 is a
/// problem.
fn decode_variables(
    env: impl IntoIterator<Item = (OsString, OsString)>,
) -> (Vec<(String, String)>, Vec<Problem>) {
    let mut variables = Vec::new();
    let mut problems = Vec::new();
    for (name, value) in env {
        let lossy_name = name.to_string_lossy().into_owned();
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => variables.push((name, value)),
            _ if variables::is_for_configuration(&lossy_name) => {
                let location = Location::Variable { name: lossy_name };
                let fault =
                    Fault::new("name or value is not UTF-8", "set it in the encoding UTF-8");
                problems.push(Problem::new(location, "", fault));
            }
            _ => {}
        }
    }
    (variables, problems)
}

#[derive(Clone, Copy, PartialEq)]
enum FileChecks {
    Enabled,
    Skipped,
}

fn read(
    file_name: &str,
    text: &str,
    env: &[(String, String)],
    earlier_problems: Vec<Problem>,
    file_checks: FileChecks,
) -> Result<Loaded, Problems> {
    let Resolution { config, locations, is_complete, mut problems } =
        resolve(raw::read_raw(file_name, text, env));
    problems.extend(earlier_problems);
    if is_complete {
        problems.extend(check::between_keys(&config, &locations));
    }
    if file_checks == FileChecks::Enabled {
        problems.extend(check::files(&config, &locations));
    }
    Problems::into_result(problems)?;
    Ok(Loaded { config, overrides: locations.overrides(), locations })
}
