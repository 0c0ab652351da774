//! Servers and load generators of the benchmarks: an API that responds at once, the floor of the
//! cost of a hit, pingora without the gateway. Never shipped; `make bench` starts them
//! (benches/compare).
//!
//!   peers origin ADDRESS
//!   peers floor WORKERS ADDRESS [TLS-ADDRESS CERTIFICATE KEY]
//!   peers pingora WORKERS ADDRESS ORIGIN
//!   peers once REQUESTS SEED CONNECTIONS ADDRESS
//!   peers paced REQUESTS SEED CONNECTIONS ADDRESS RATE SECONDS [tls | hits]
//!   peers http2 REQUESTS SEED CONNECTIONS ADDRESS SECONDS [RATE]
//!   peers clock RATE SECONDS
//!
//! REQUESTS is a file with one request per line: token, path, and optionally an entity tag; a line
//! that begins with `+` is a field of every request. `{}` in a path is replaced by a new id, which
//! begins with SEED, twelve hexadecimal digits.

mod floor;
mod load;
mod load_http2;
mod origin;
mod plain;

use std::process::ExitCode;

/// An error ends the program with its message.
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
        ["once", requests, seed, connections, address] => {
            load::once(requests, seed, connections, address)
        }
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
        _ => Err("unknown arguments; benches/peers/main.rs lists them".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}
