//! How long key, lookup, redact and reply take, each alone: `cargo bench --manifest-path benches/Cargo.toml --target-dir target`.

#[path = "operations.rs"]
#[expect(dead_code, reason = "what only the other program of this folder uses")]
mod operations;

fn main() {
    divan::main();
}

#[divan::bench(args = operations::OPERATIONS)]
fn operation(bencher: divan::Bencher<'_, '_>, name: &str) {
    let operation = operations::operation(name).expect("one of them");
    bencher.bench_local(operation);
}
