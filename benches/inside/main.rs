//! Runs parts of the gateway in this process. Each prints one line of JSON;
//! benches/compare/parts.py runs all of them.
//!
//!   inside memory ENTRIES        the cache, full of documents of a kilobyte: memory without the
//!   bodies inside alike ENTRIES         the same, each document stored for ten callers inside bare
//!   ENTRIES          moka alone, a key of 32 bytes and a body behind an Arc inside bounded
//!   MEBIBYTES     memory of a cache of that `max_bytes` after far more was stored inside lookup
//!   ENTRIES THREADS     nanoseconds of CPU for a hit's two lookups, any of the entries inside
//!   count OPERATION TIMES      repeats an operation, for callgrind

mod operations;
mod store;

use std::process::ExitCode;

/// The allocator of the gateway.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<usize>().ok();
    let said = match words[..] {
        ["memory", entries] => number(entries).map(|entries| store::memory(entries, 1)),
        ["alike", entries] => number(entries).map(|entries| store::memory(entries, 10)),
        ["bare", entries] => number(entries).map(store::bare),
        ["bounded", mebibytes] => number(mebibytes).map(store::bounded),
        ["lookup", entries, threads] => number(entries)
            .zip(number(threads))
            .map(|(entries, threads)| store::lookup(entries, threads)),
        ["count", operation, times] => {
            number(times).and_then(|times| operations::count(operation, times))
        }
        _ => None,
    };
    match said {
        Some(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("inside: unknown arguments; benches/inside/main.rs lists them");
            eprintln!("operations: {}", operations::OPERATIONS.join(", "));
            ExitCode::FAILURE
        }
    }
}
