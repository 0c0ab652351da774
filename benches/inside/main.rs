//! The gateway's parts, driven in this process. Each prints one line of JSON; benches/compare/parts.py asks for all of them.
//!
//!   inside memory ENTRIES        the cache, full of documents of a kilobyte: resident memory beside the bodies
//!   inside alike ENTRIES         the same, each document held for ten callers
//!   inside bare ENTRIES          moka alone, a key of 32 bytes and a body behind an Arc
//!   inside bounded MEBIBYTES     what a cache of that `max_bytes` takes when far more was stored
//!   inside lookup ENTRIES THREADS     nanoseconds of CPU for a hit's two lookups, any of the entries
//!   inside count OPERATION TIMES      an operation so often, for callgrind to count

mod operations;
mod store;

use std::process::ExitCode;

/// As the gateway has it.
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
        ["lookup", entries, threads] => {
            number(entries).zip(number(threads)).map(|(entries, threads)| store::lookup(entries, threads))
        }
        ["count", operation, times] => number(times).and_then(|times| operations::count(operation, times)),
        _ => None,
    };
    match said {
        Some(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("inside: see the head of benches/inside/main.rs for what it can be asked");
            eprintln!("operations: {}", operations::OPERATIONS.join(", "));
            ExitCode::FAILURE
        }
    }
}
