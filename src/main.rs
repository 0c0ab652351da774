//! The binary: all it does is in the library.

use std::process::ExitCode;

/// See docs/adr/0024 for what was compared.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    telecomx_gateway::cli::run()
}
