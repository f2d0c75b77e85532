//! How fast the emulator executes: lane-instructions a second with its checkers on and off, on one thread and
//! on two, and a plain Rust loop of the same arithmetic.
//!
//! A lane-instruction is one instruction of one thread. What is timed are launches alone. The same cases make
//! the trend in emulator.md (`emulator-trend`).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use psa_benches::emulated::{How, cases};
use std::time::Duration;

fn emulator(c: &mut Criterion) {
    for mut case in cases() {
        let mut group = c.benchmark_group(format!("emulator, {}", case.name));
        group
            .sample_size(10)
            .warm_up_time(Duration::from_millis(300))
            .measurement_time(Duration::from_secs(2));
        let executed = case.run(How { checks: false, threads: 1 });
        group.throughput(Throughput::Elements(executed));
        for checks in [false, true] {
            for threads in [1, 2] {
                let name = if checks { "checks on" } else { "checks off" };
                group.bench_function(BenchmarkId::new(name, format!("{threads} threads")), |b| {
                    b.iter(|| case.run(How { checks, threads }));
                });
            }
        }
        group.bench_function("plain loop", |b| b.iter(|| (case.plain)()));
        group.finish();
    }
}

criterion_group!(benches, emulator);
criterion_main!(benches);
