//! The binary: all it does is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    telecomx_gateway::cli::run()
}
