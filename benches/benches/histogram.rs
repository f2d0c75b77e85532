//! One launch of `histogram` on the emulator, checks off: its instructions a second, for comparing versions of the kernel.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kernels_gpu::histogram::{BINS, histogram};
use psa::driver::{Driver, Emulated, EmulatedOptions};

const HEADS: usize = 8;
const NB: usize = 1024;

fn bench(c: &mut Criterion) {
    let mut driver =
        Emulated::new(EmulatedOptions { checks: false, ..EmulatedOptions::default() }).expect("loads");
    let mut region = |bytes: usize| driver.region(bytes, "bench").expect("room");
    let [log_mass, peak, lens, counts] = [4 * HEADS * NB, 4 * HEADS, 4, 4 * HEADS * BINS].map(&mut region);
    driver.upload(log_mass.address(), &vec![0; 4 * HEADS * NB]).expect("room");
    driver.upload(peak.address(), &[0; 4 * HEADS]).expect("room");
    driver.upload(lens.address(), &(16 * NB as u32).to_le_bytes()).expect("room");
    let (heads, max_blocks) = (HEADS as u32, NB as u32);
    let (log_mass, peak, lens) = (log_mass.input(), peak.input(), lens.input());
    let args = histogram::Args { log_mass, peak, lens, counts: counts.output(), heads, max_blocks };
    let launch = histogram::launch([heads, 1, 1], args).expect("keeps its contract");
    let mut group = c.benchmark_group("histogram on the emulator");
    group.throughput(Throughput::Elements((HEADS * NB) as u64)).sample_size(10);
    group.bench_function("8 heads, 1024 blocks", |b| b.iter(|| driver.launch(&launch).expect("runs")));
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
