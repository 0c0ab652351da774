//! The binary; the library contains the commands.

use std::process::ExitCode;

/// docs/adr/0024 compares allocators.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    telecomx_gateway::cli::run()
}
