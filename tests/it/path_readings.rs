//! Paths that servers read in different ways: whatever the API or a proxy in front of it makes of
//! a path, no other spelling of a protected one gets through.

use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::select;
use telecomx_gateway::api::{NormalPath, PathPattern, Protected};

use crate::support::routing::{Protection, ROUTES, routed};
use crate::support::*;

const ID: &str = "73469a52f4fd7f77ec7b28cc";

/// One path of each protected route, as the API documents it.
const PATHS: [&str; 10] = [
    "/tools/realtime",
    "/tools/realtime/below",
    "/porting/7/notify",
    "/pbx/app/notification/send/callerid",
    "/reseller/7/customers",
    "/customer/73469a52f4fd7f77ec7b28cc/name",
    "/customer/73469a52f4fd7f77ec7b28cc",
    "/auth/logout",
    "/employee/7/token/AbC",
    "/integration/also/customer/73469a52f4fd7f77ec7b28cc/sync",
];

/// Delimiters, blanks and invisible characters, raw and escaped.
const INSERTED: [&str; 34] = [
    "/",
    "//",
    "%2F",
    "%2f",
    "%252F",
    "\\",
    "%5C",
    "%255C",
    ";",
    ";x",
    "%3B",
    "%3Fx",
    "%3F",
    "%23",
    "%253F",
    ".",
    "..",
    "/./",
    "/../",
    "/x/../",
    "%2E",
    "%2e%2e",
    "/%2e%2e/",
    "%20",
    "%C2%A0",
    "%E3%80%80",
    "%E2%80%8B",
    "%E2%81%A0",
    "%EF%BB%BF",
    "%C2%AD",
    "%CC%81",
    "%EF%BC%8F",
    "%EF%BC%9F",
    "%EF%BC%9B",
];

static BLOCKED: LazyLock<Vec<PathPattern>> = LazyLock::new(|| {
    patterns(&[
        "/tools/realtime",
        "/tools/realtime/**",
        "/porting/*/notify",
        "/pbx/app/notification/send/callerid",
    ])
});

static REDACTED: LazyLock<Vec<PathPattern>> =
    LazyLock::new(|| patterns(&["/reseller/*/customers", "/customer/**", "/auth/**", "/log/**"]));

fn patterns(texts: &[&str]) -> Vec<PathPattern> {
    texts.iter().map(|text| PathPattern::parse(text).expect("a pattern")).collect()
}

/// Whether the gateway refuses the path, or recognizes each route that a server runs for it.
fn judge(path: &str) -> Result<(), String> {
    let Ok(read) = NormalPath::parse(path, Protected { blocked: &BLOCKED, redacted: &REDACTED })
    else {
        return Ok(());
    };
    for (server, route, _) in routed(path) {
        let pattern = PathPattern::parse(route).expect("a pattern");
        if !read.is(&pattern) {
            return Err(format!(
                "{path}: {server} runs {route}, the gateway reads {:?}",
                read.folded()
            ));
        }
    }
    Ok(())
}

/// Every path with something inserted at every position.
fn spellings() -> impl Iterator<Item = String> {
    PATHS.into_iter().flat_map(|path| {
        let positions = path.char_indices().map(|(at, _)| at).chain([path.len()]);
        positions.flat_map(move |at| {
            INSERTED
                .into_iter()
                .map(move |inserted| format!("{}{inserted}{}", &path[..at], &path[at..]))
        })
    })
}

#[test]
fn every_insertion_is_refused_or_recognized() {
    for path in spellings().filter(|path| path.starts_with('/')) {
        judge(&path).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    assert!(
        ROUTES
            .iter()
            .all(|(route, _)| !routed(&route.replace("**", "x").replace('*', ID)).is_empty())
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_path_is_refused_or_recognized(
        words in prop::collection::vec(
            prop_oneof![
                select(&["tools", "realtime", "porting", "notify", "customer", "name", "reseller", "customers"][..]),
                select(&["auth", "logout", "employee", "token", "log", "changelog", "7", ID, "x", "Realtime"][..]),
                select(&["re%61ltime", "customer%73", "n%2561me", "%74ools"][..]),
            ],
            1..5,
        ),
        joints in prop::collection::vec(prop_oneof![3 => Just("/"), 2 => select(&INSERTED[..])], 10),
    ) {
        let mut path = String::from("/");
        for (word, joint) in words.iter().zip(&joints) {
            path.push_str(word);
            path.push_str(joint);
        }
        for path in [path.as_str(), path.trim_end_matches('/'), &format!("{path}{}", words[0])] {
            prop_assert_eq!(judge(if path.is_empty() { "/" } else { path }), Ok(()));
        }
    }
}

/// A gateway with a redact rule outside the protected roots, before an API that answers any path.
fn scene() -> (Origin, Gateway) {
    let origin = Origin::start();
    origin.knows("tok-a", "VIEWER", DUCK);
    origin.when(Rule::on("").answer(Answer::json("{}")));
    origin.when(Rule::on("/auth/validateToken"));
    let gateway = Gateway::with(
        &origin,
        r#"forward.redact = [
            {path = "/reseller/*/customers"},
            {path = "/customer/**"},
            {path = "/auth/**", role = "answer"},
        ]"#,
    );
    (origin, gateway)
}

/// The insertions at the ends of segments, where a server is most likely to drop something.
fn spellings_at_segments() -> Vec<String> {
    let mut all = Vec::new();
    for path in PATHS {
        let ends =
            path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([path.len()]);
        for at in ends {
            for place in [at, (at + 1).min(path.len())] {
                all.extend(
                    INSERTED
                        .map(|inserted| format!("{}{inserted}{}", &path[..place], &path[place..])),
                );
            }
        }
    }
    all.sort();
    all.dedup();
    all
}

#[test]
fn no_spelling_of_a_protected_path_reaches_its_handler() {
    let (origin, gateway) = scene();
    let http2 = Http2::connect(&gateway.client());
    let is_other = |path: &str| !PATHS.contains(&path);
    for (number, path) in spellings_at_segments().iter().filter(|path| is_other(path)).enumerate() {
        let (method, fields) = (["GET", "POST"][number % 2], [("authorization", "Bearer tok-a")]);
        let status = if number % 3 == 0 {
            http2.call(method, path, &fields, b"").expect("a response").status
        } else {
            gateway.client().call(method, path).bearer("tok-a").kind(Kind::Forwarded).send().status
        };
        assert!(matches!(status, 200 | 400 | 403), "{method} {path}: {status}");
        let Some(seen) = origin.last(path) else { continue };
        // What reaches the API is no blocked path in any reading, and redacted where it must be.
        let blocked = routed(&seen.target).into_iter().find(|(.., is)| *is == Protection::Blocked);
        assert_eq!(blocked, None, "{method} {path} was forwarded");
        assert_eq!(judge(&seen.target), Ok(()), "{method} {path} was forwarded");
    }
    for path in
        ["/files/7%2Fx/notify", "/reseller/S%C3%B8ren%20B/customers", "/search/what%3F%20%23"]
    {
        let response = gateway.client().get(path).bearer("tok-a").kind(Kind::Forwarded).send();
        assert_eq!(response.status, 200, "{path}");
        assert_eq!(origin.last(path).expect("it was forwarded").target, path);
    }
}

#[test]
fn path_over_its_bound_is_refused_in_the_apis_shape() {
    let (origin, gateway) = scene();
    for path in [format!("/{}", "x".repeat(4096)), "/%EF%B7%BA".repeat(500)] {
        let response = gateway.client().get(&path).bearer("tok-a").kind(Kind::Forwarded).send();
        response.assert_error(414, "bad_request");
        let response =
            Http2::connect(&gateway.client()).call("GET", &path, &[], b"").expect("a response");
        response.assert_error(414, "bad_request");
    }
    assert_eq!(origin.count(|seen| seen.path() != "/auth/validateToken"), 0);
    let query = format!("/x?{}", "x".repeat(20 << 10));
    gateway.client().get(&query).bearer("tok-a").kind(Kind::Forwarded).send().assert_status(200);
}

#[test]
fn default_blocked_paths_cover_their_descendants() {
    let origin = Origin::start();
    let gateway = Gateway::start(&origin);
    for path in ["/tools/realtime", "/porting/7/notify", "/pbx/app/notification/send/callerid"] {
        for after in ["", "/x", "/x/y", ".json", ".json/x", "."] {
            for method in ["GET", "POST"] {
                let path = format!("{path}{after}");
                gateway.client().call(method, &path).send().assert_error(403, "access_denied");
            }
        }
        gateway.client().get(&format!("{path}s")).kind(Kind::Forwarded).send().assert_status(200);
    }
    assert_eq!(origin.count(|seen| seen.path().contains('.')), 0);
}
