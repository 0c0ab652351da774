//! What the gateway is measured against and with: an API that answers at once, the floor of what a hit can cost, pingora
//! without the gateway, and a load generator. Never shipped; `make bench` starts them (benches/compare).
//!
//!   peers origin ADDRESS
//!   peers floor WORKERS ADDRESS [TLS-ADDRESS CERTIFICATE KEY]
//!   peers pingora WORKERS ADDRESS ORIGIN
//!   peers once REQUESTS SEED CONNECTIONS ADDRESS
//!   peers paced REQUESTS SEED CONNECTIONS ADDRESS RATE SECONDS [tls | hits]
//!   peers http2 REQUESTS SEED CONNECTIONS ADDRESS SECONDS [RATE]
//!   peers clock RATE SECONDS
//!
//! REQUESTS is a file, one request a line: token, path, and where there is one an entity tag; a line that begins with `+` is
//! a field of every request. `{}` in a path becomes an id
//! that was never asked for before; SEED, twelve hexadecimal digits, begins it.

mod floor;
mod load;
mod load_http2;
mod origin;
mod plain;

use std::process::ExitCode;

/// What goes wrong here ends the program with its words.
type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["origin", address] => origin::serve(address),
        ["floor", workers, address] => floor::serve(workers, address, None),
        ["floor", workers, address, tls, certificate, key] => {
            floor::serve(workers, address, Some((tls, certificate, key)))
        }
        ["pingora", workers, address, origin] => plain::serve(workers, address, origin),
        ["once", requests, seed, connections, address] => load::once(requests, seed, connections, address),
        ["paced", requests, seed, connections, address, rate, seconds] => {
            load::paced((requests, seed, connections, address), rate, seconds, false, false)
        }
        ["paced", requests, seed, connections, address, rate, seconds, "hits"] => {
            load::paced((requests, seed, connections, address), rate, seconds, false, true)
        }
        ["paced", requests, seed, connections, address, rate, seconds, "tls"] => {
            load::paced((requests, seed, connections, address), rate, seconds, true, false)
        }
        ["http2", requests, seed, connections, address, seconds] => {
            load_http2::run((requests, seed, connections, address), seconds, None)
        }
        ["http2", requests, seed, connections, address, seconds, rate] => {
            load_http2::run((requests, seed, connections, address), seconds, Some(rate))
        }
        ["clock", rate, seconds] => load::clock(rate, seconds),
        _ => Err("see the head of benches/peers/main.rs for what it can be asked".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}
