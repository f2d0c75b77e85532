//! How fast the emulator executes the shipped kernels: lane-instructions per second, with its checkers on and
//! off.
//!
//! A lane-instruction is one instruction of one thread. What is timed is a whole decode step (uploads and
//! downloads included, which are small here) of one KV head.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use psa::driver::{Counters, Driver, DriverError, Emulated, EmulatedOptions};
use psa::{DecodePlan, Device, Dtype, Mirror, Policy, Shape};
use psa_benches::{filled, queries};
use psa_codegen::{DeviceLimits, Launch};
use psa_tests::Workload;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// An emulated driver whose counters can be read while a cache owns it.
struct Counted(Emulated, Arc<Mutex<Counters>>);

impl Driver for Counted {
    fn name(&self) -> String {
        self.0.name()
    }
    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        self.0.alloc(bytes, what)
    }
    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.0.free(address)
    }
    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.0.upload(address, data)
    }
    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        self.0.download(address, data)
    }
    fn limits(&self) -> DeviceLimits {
        self.0.limits()
    }
    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        self.0.launch(launch)?;
        *self.1.lock().expect("no bench panics while it holds the lock") =
            self.0.counters().unwrap_or_default();
        Ok(())
    }
    fn counters(&self) -> Option<Counters> {
        self.0.counters()
    }
}

fn emulator(c: &mut Criterion) {
    let shape = Shape { layers: 1, q_heads: 4, kv_heads: 1, head_dim: 64, dtype: Dtype::F16 };
    let workload = Workload::random(shape, &[512], 1);
    let q = queries(&workload);
    let mut group = c.benchmark_group("emulator, 512 tokens, 1 KV head x 4, 64 dims, f16");
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    for policy in [Policy::Dense, Policy::Progressive { mass: 0.95 }] {
        for checks in [true, false] {
            let counters = Arc::new(Mutex::new(Counters::default()));
            let shared = counters.clone();
            let device = Device::with_driver("emulator", move || {
                let emulated = Emulated::new(EmulatedOptions { checks, ..EmulatedOptions::default() })?;
                Ok(Box::new(Counted(emulated, shared.clone())) as Box<dyn Driver>)
            });
            let (mut cache, ids) = filled(&device, &workload, Mirror::Bits2).expect("the workload fits");
            let mut plan = DecodePlan::new(&cache, &ids, policy).expect("the policy runs");
            let mut out = vec![0.0; shape.query_elements()];
            let mut step = || plan.attend(&mut cache, 0, q.all(), &mut out).expect("a step");

            let executed =
                || counters.lock().expect("no bench panics while it holds the lock").lane_instructions;
            let before = executed();
            step();
            group.throughput(Throughput::Elements(executed() - before));
            let checks = if checks { "checks on" } else { "checks off" };
            group.bench_function(BenchmarkId::new(format!("{policy} step"), checks), |b| b.iter(&mut step));
        }
    }
    group.finish();
}

criterion_group!(benches, emulator);
criterion_main!(benches);
