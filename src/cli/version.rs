//! The version of the build: `-V` prints the number, `--version` also commit, features and
//! allocator.

#[cfg(all(feature = "otlp", feature = "fips"))]
macro_rules! features {
    () => {
        "fips otlp"
    };
}

#[cfg(all(feature = "otlp", not(feature = "fips")))]
macro_rules! features {
    () => {
        "otlp"
    };
}

#[cfg(all(feature = "fips", not(feature = "otlp")))]
macro_rules! features {
    () => {
        "fips"
    };
}

#[cfg(not(any(feature = "otlp", feature = "fips")))]
macro_rules! features {
    () => {
        "none"
    };
}

/// Number, commit (from build.rs; `unknown` without a repository), features, and the allocator of
/// `main.rs`.
pub(super) const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("TELECOMX_GATEWAY_REVISION"),
    ", features: ",
    features!(),
    ", allocator: mimalloc)"
);
