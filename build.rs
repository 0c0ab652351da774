//! Names the commit of the build, for `--version` and the metric `telecomx_gateway_build_info`.

use std::path::Path;
use std::process::Command;

/// Overrides the commit, for builds from an archive.
const VARIABLE: &str = "TELECOMX_GATEWAY_REVISION";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    println!("cargo::rerun-if-changed=build.rs");
    let given = std::env::var(VARIABLE).ok().filter(|revision| !revision.is_empty());
    let revision = given.or_else(commit).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env={VARIABLE}={revision}");
}

fn commit() -> Option<String> {
    // Of this repository only: the sources may be inside another one, such as that of a vendored
    // build.
    if !Path::new(".git").exists() {
        return None;
    }
    // Each commit and checkout appends to this file, which a worktree has in another directory. A
    // file that does not exist would cause a rebuild each time.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
