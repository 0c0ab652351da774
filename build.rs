//! Names the commit of the build, for `--version` and the metric `telecomx_gateway_build_info`.

use std::path::Path;
use std::process::Command;

/// Overrides the commit, for builds from an archive.
const VARIABLE: &str = "TELECOMX_GATEWAY_REVISION";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed=build.rs");
    // Each commit and checkout appends to this file. A file that does not exist would cause a
    // rebuild each time.
    let log = Path::new(".git/logs/HEAD");
    if log.exists() {
        println!("cargo::rerun-if-changed={}", log.display());
    }
    let given = std::env::var(VARIABLE).ok().filter(|revision| !revision.is_empty());
    let revision = given.or_else(commit).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env={VARIABLE}={revision}");
}

fn commit() -> Option<String> {
    // Of this repository only: the sources may be inside another one, such as that of a vendored
    // build.
    Path::new(".git").exists().then_some(())?;
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
