//! Time of key, lookup, redact and reply, each alone:
//! `cargo bench --package telecomx-gateway-benches`.

#[path = "operations.rs"]
#[expect(dead_code, reason = "used by the other program of this folder")]
mod operations;

fn main() {
    divan::main();
}

#[divan::bench(args = operations::OPERATIONS)]
fn operation(bencher: divan::Bencher<'_, '_>, name: &str) {
    let operation = operations::operation(name).expect("one of them");
    bencher.bench_local(operation);
}
