//! Any text as the path of a request, judged by a slow reference of how Express, nginx, Apache,
//! Tomcat and a trimming proxy route: if one of them runs a protected route for it, the gateway
//! refused the path or recognized the route.

#![no_main]

#[path = "../../tests/it/support/routing.rs"]
mod routing;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use routing::{Protection, ROUTES, routed};
use telecomx_api::{NormalPath, PathPattern, Protected};

fn patterns(wanted: Protection) -> Vec<PathPattern> {
    let all = ROUTES.iter().filter(|(_, protection)| *protection == wanted);
    all.map(|(route, _)| PathPattern::parse(route).expect("a pattern")).collect()
}

static BLOCKED: LazyLock<Vec<PathPattern>> = LazyLock::new(|| patterns(Protection::Blocked));
static REDACTED: LazyLock<Vec<PathPattern>> = LazyLock::new(|| patterns(Protection::Redacted));

fuzz_target!(|data: &[u8]| {
    let Ok(path) = std::str::from_utf8(data) else { return };
    if path.contains('?') {
        return;
    }
    let protected = Protected { blocked: &BLOCKED, redacted: &REDACTED };
    let Ok(read) = NormalPath::parse(path, protected) else {
        return assert!(!is_plainest(path), "the plain spelling is refused");
    };
    for (server, route, _) in routed(path) {
        let pattern = PathPattern::parse(route).expect("a pattern");
        assert!(read.is(&pattern), "{server} runs {route}; the gateway reads {:?}", read.folded());
    }
});

/// Small letters and digits between single slashes, except the one route with a capital.
fn is_plainest(path: &str) -> bool {
    let words = path.strip_prefix('/').map(|path| path.split('/').collect::<Vec<_>>());
    let is_plain = |word: &&str| {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        !word.is_empty() && word.bytes().all(allowed) && *word != "validatetoken"
    };
    path.len() <= 4096 && words.is_some_and(|words| words.iter().all(is_plain))
}
