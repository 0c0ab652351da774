//! Warnings about settings that are valid but dangerous. Pure functions of the checked
//! configuration, so that `check`, the start and a reload report the same ones.

use std::net::IpAddr;

use telecomx_api::AccessLevel;

use super::diagnostic::Warning;
use super::model::{Config, Forward, Redaction, Server, Upstream};

/// Paths whose responses hold integration secrets in the API.
const SECRET_PATHS: [&str; 3] = ["/customer/**", "/auth/**", "/log/**"];

/// The warnings about a configuration, in the order of the shipped file.
pub fn warnings(config: &Config) -> Vec<Warning> {
    let mut warnings = Vec::new();
    listeners(&config.server, &mut warnings);
    upstream(&config.upstream, &mut warnings);
    redaction(&config.redaction, &mut warnings);
    forward(&config.forward, &mut warnings);
    warnings
}

fn listeners(server: &Server, warnings: &mut Vec<Warning>) {
    let is_reachable =
        server.listen.iter().any(|address| !address.ip().to_canonical().is_loopback());
    // An operator who names a proxy has one in front, which terminates TLS.
    let has_proxy = server
        .trusted_proxies
        .iter()
        .any(|network| network.prefix_len() > 0 && !network.addr().to_canonical().is_loopback());
    if is_reachable && !has_proxy {
        warnings.push(Warning {
            key: "server.listen",
            cause: "a cleartext listener can be reached from other machines".to_owned(),
            remedy: "use server.tls, or list the proxy that terminates TLS in server.trusted_proxies",
        });
    }
    if server.trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
        warnings.push(Warning {
            key: "server.trusted_proxies",
            cause: "every address is a trusted proxy: any client can claim any address".to_owned(),
            remedy: "list only the addresses of your load balancers",
        });
    }
}

fn upstream(upstream: &Upstream, warnings: &mut Vec<Warning>) {
    let is_local = |host: &str| {
        host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.to_canonical().is_loopback())
    };
    if upstream.urls.iter().any(|url| !url.tls && !is_local(&url.host)) {
        warnings.push(Warning {
            key: "upstream.url",
            cause: "the connection to the API is not encrypted: tokens and secrets are sent in cleartext".to_owned(),
            remedy: "use an https URL",
        });
    }
}

fn redaction(redaction: &Redaction, warnings: &mut Vec<Warning>) {
    let reveal_to = redaction.reveal_to;
    if reveal_to < AccessLevel::Reseller {
        warnings.push(Warning {
            key: "redaction.reveal_to",
            cause: format!(
                "access levels below RESELLER see integration secrets: reveal_to is {reveal_to}"
            ),
            remedy: "use RESELLER or a higher access level",
        });
    }
    if reveal_to == AccessLevel::LOWEST {
        warnings.push(Warning {
            key: "redaction.reveal_to",
            cause: "nothing is redacted for any access level".to_owned(),
            remedy: "use RESELLER or a higher access level",
        });
    }
    if redaction.public.iter().any(|selector| selector == "**") {
        warnings.push(Warning {
            key: "redaction.public",
            cause: "the selector ** reveals everything under the roots, secrets included"
                .to_owned(),
            remedy: "list the members that are not secret",
        });
    }
}

fn forward(forward: &Forward, warnings: &mut Vec<Warning>) {
    for path in SECRET_PATHS {
        if !forward
            .redact
            .iter()
            .any(|rule| [path, "/**"].contains(&rule.path.to_string().as_str()))
        {
            warnings.push(Warning {
                key: "forward.redact",
                cause: format!(
                    "no rule for {path}, where responses of the API hold the same secrets"
                ),
                remedy: "repeat the default rules that you keep",
            });
        }
    }
    if forward.blocked.is_empty() {
        warnings.push(Warning {
            key: "forward.blocked",
            cause:
                "nothing is blocked: clients can use paths that the API protects by source address"
                    .to_owned(),
            remedy: "remove the key to restore the default list",
        });
    }
}
