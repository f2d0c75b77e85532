//! A whole decode step of one layer on the CPU: dense against progressive, by length of the context.
//!
//! Throughput is in bytes of the context's K and V, read or not: the same denominator for all policies, so
//! that twice the throughput is half the time. `progressive:0.95` reads half of the blocks at 1K and a third at
//! 4K and 16K here (2 bits; 4 bits a little less).

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use psa::{DecodePlan, Device, Mirror, Policy};
use psa_benches::{filled, kv_bytes, layer_8b, queries, traces};
use psa_tests::Workload;
use std::time::Duration;

const POLICIES: [(Mirror, Policy); 3] = [
    (Mirror::Bits2, Policy::Dense),
    (Mirror::Bits2, Policy::Progressive { mass: 0.95 }),
    (Mirror::Bits4, Policy::Progressive { mass: 0.95 }),
];

fn bench(c: &mut Criterion, group: &str, workloads: &[(String, Workload)]) {
    let mut group = c.benchmark_group(group);
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    for (name, workload) in workloads {
        group.throughput(Throughput::Bytes(kv_bytes(workload)));
        let q = queries(workload);
        let elements = workload.sequences.len() * workload.shape.query_elements();
        for (mirror, policy) in POLICIES {
            let (mut cache, ids) = filled(&Device::cpu(), workload, mirror).expect("the workload fits");
            let mut plan = DecodePlan::new(&cache, &ids, policy).expect("the policy runs");
            let mut out = vec![0.0; elements];
            let label = match policy {
                Policy::Dense => "dense".to_string(),
                _ => format!("{policy}, {mirror} bits"),
            };
            group.bench_function(BenchmarkId::new(label, name), |b| {
                b.iter(|| plan.attend(&mut cache, 0, q.all(), &mut out).expect("a step"));
            });
        }
    }
    group.finish();
}

fn step(c: &mut Criterion) {
    let by_length = [1024, 4096, 16_384].map(|n| (format!("{}K", n / 1024), layer_8b(n)));
    bench(c, "step, 8 KV heads x 4, 128 dims, bf16", &by_length);
    bench(c, "step, 8 sequences, 1 KV head x 3, 64 dims, f16", &[("4K".into(), traces())]);
}

criterion_group!(benches, step);
criterion_main!(benches);
