//! The emulator's host threads change nothing about the shipped kernels: after every launch of a step the
//! report with its counters, and all of device memory, are those of one thread.

use psa::driver::{Driver, DriverError};
use psa::{Device, Dtype, Mirror, Policy, Shape};
use psa_codegen::{DeviceLimits, Launch};
use psa_tests::{Workload, run};
use ptx_emulator::{Arg, DevicePtr, LaunchConfig, Module, Options};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

const NAME: &str = "emulator of so many threads";

/// What each launch left behind.
type Log = Arc<Mutex<Vec<String>>>;

struct Logging {
    device: ptx_emulator::Device,
    module: Module,
    /// Sizes by address.
    buffers: BTreeMap<u64, usize>,
    log: Log,
}

fn failed(call: &'static str, address: u64, bytes: usize, e: &ptx_emulator::Error) -> DriverError {
    DriverError::Memory { call, address, bytes, detail: e.to_string() }
}

impl Driver for Logging {
    fn name(&self) -> String {
        NAME.into()
    }

    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        let p = self.device.alloc(bytes.max(1) as u64, what).map_err(|e| failed("alloc", 0, bytes, &e))?;
        self.buffers.insert(p.0, bytes);
        Ok(p.0)
    }

    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.buffers.remove(&address);
        self.device.free(DevicePtr(address)).map_err(|e| failed("free", address, 0, &e))
    }

    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        let done = self.device.copy_to(DevicePtr(address), data);
        done.map_err(|e| failed("upload", address, data.len(), &e))
    }

    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        let bytes = data.len();
        self.device.copy_from(DevicePtr(address), data).map_err(|e| failed("download", address, bytes, &e))
    }

    fn limits(&self) -> DeviceLimits {
        DeviceLimits::of_sm(self.device.options().sm)
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        let args: Vec<Arg> = launch.args.iter().map(|a| Arg::Bytes(a.bytes())).collect();
        let config =
            LaunchConfig { grid: launch.grid, block: launch.block, shared_bytes: launch.shared_bytes };
        let kernel = launch.kernel.name;
        let r = self.device.launch(&self.module, kernel, config, &args);
        let r = r.map_err(|e| DriverError::Launch { launch: kernel.into(), detail: e.to_string() })?;
        let mut memory = DefaultHasher::new();
        for (&address, &bytes) in &self.buffers {
            let mut data = vec![0; bytes];
            let read = self.device.copy_from(DevicePtr(address), &mut data);
            read.map_err(|e| failed("download", address, bytes, &e))?;
            data.hash(&mut memory);
        }
        let memory = memory.finish();
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(format!(
            "{kernel} {:?}: {:?} {:?} {} {:?} {:?} {memory:#x}",
            launch.grid, r.findings, r.counters, r.completed, r.profile, r.buffers
        ));
        Ok(())
    }
}

/// The launches of one step, and the bits of its result.
fn step(workload: &Workload, policy: Policy, options: Options) -> (Vec<String>, Vec<Vec<u32>>) {
    let log = Log::default();
    let kept = log.clone();
    let device = Device::with_driver(NAME, move || {
        Ok(Box::new(Logging {
            device: ptx_emulator::Device::new(options.clone()),
            module: Module::parse(kernels_gpu::PTX).expect("the shipped PTX parses"),
            buffers: BTreeMap::new(),
            log: log.clone(),
        }) as Box<dyn Driver>)
    });
    let got = run(&device, workload, Mirror::Nested, policy).unwrap();
    let launches = kept.lock().unwrap().clone();
    (launches, (0..workload.sequences.len()).map(|i| got.bits(i)).collect())
}

#[test]
fn host_threads_change_neither_memory_nor_report_of_the_shipped_kernels() {
    let shape = Shape { layers: 1, q_heads: 6, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
    let workload = Workload::random(shape, &[1500, 333], 9);
    let mut families = Vec::new();
    for policy in [Policy::Dense, Policy::Progressive { mass: 0.95 }] {
        for seed in [0, 3, 11] {
            let options = Options { seed, threads: 1, profile: true, buffers: true, ..Options::default() };
            let (serial, bits) = step(&workload, policy, options.clone());
            for threads in [2, 3] {
                let (spread, other) = step(&workload, policy, Options { threads, ..options.clone() });
                assert_eq!(serial.len(), spread.len());
                for (one, many) in serial.iter().zip(&spread) {
                    assert_eq!(one, many, "{policy}, seed {seed}, {threads} threads");
                }
                assert_eq!(bits, other, "{policy}, seed {seed}, {threads} threads");
            }
            families.extend(serial.iter().filter_map(|l| l.split('_').next()).map(str::to_string));
        }
    }
    for family in ["append", "score", "plan", "attend", "merge"] {
        assert!(families.iter().any(|f| f.contains(family)), "no launch of {family} in {families:?}");
    }
}
