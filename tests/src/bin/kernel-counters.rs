//! What the emulator counts in one small launch of every kernel entry, as one JSON object: entry to
//! counters. `cargo xtask ratchet` pins these numbers.
//!
//! The launches are those of fixed decode steps, so an entry's counters are the same on every run and
//! machine. The first launch of an entry counts. Capacity instances of `plan` take each other's launches:
//! a row that fits the smallest fits them all.
//!
//! Trap: an entry that no step launches would go unwatched. That is an error here.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use psa::device::plans::in_passes;
use psa::driver::{Driver, DriverError};
use psa::{Device, Dtype, Mirror, Policy, Shape};
use psa_codegen::{DeviceLimits, Launch, RawLaunch, Region};
use psa_tests::plans::MadeUpPlan;
use psa_tests::{Workload, run};
use ptx_emulator::{Arg, Checks, Counters, DevicePtr, LaunchConfig, Module, Options};

type Record = Arc<Mutex<BTreeMap<&'static str, Counters>>>;

/// The emulator, writing down what each entry's first launch counted.
struct Counting {
    device: ptx_emulator::Device,
    module: Module,
    record: Record,
}

impl Counting {
    fn new(record: Record) -> Result<Self, DriverError> {
        let module = Module::parse(kernels_gpu::PTX)
            .map_err(|e| DriverError::Module { device: NAME.into(), detail: e.to_string() })?;
        // The checkers have their own tests; a stray access would still falsify the counts.
        let checks = Checks { mem: true, launch: true, steps: true, ..Checks::none() };
        let device = ptx_emulator::Device::new(Options { checks, ..Options::default() });
        Ok(Counting { device, module, record })
    }

    fn count(&mut self, launch: &Launch) -> Result<(), DriverError> {
        launch.check(&self.limits())?;
        let args: Vec<Arg> = launch.args.iter().map(|arg| Arg::Bytes(arg.bytes())).collect();
        let config =
            LaunchConfig { grid: launch.grid, block: launch.block, shared_bytes: launch.shared_bytes };
        let name = launch.kernel.name;
        let failed = |detail: String| DriverError::Launch { launch: format!("kernel {name}"), detail };
        let report =
            self.device.launch(&self.module, name, config, &args).map_err(|e| failed(e.to_string()))?;
        if let Some(finding) = report.findings.first() {
            return Err(failed(finding.to_string()));
        }
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.entry(name).or_insert(report.counters);
        Ok(())
    }
}

const NAME: &str = "counting emulator";

impl Driver for Counting {
    fn name(&self) -> String {
        NAME.into()
    }

    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        self.device.alloc(bytes.max(1) as u64, what).map(|p| p.0).map_err(|e| DriverError::OutOfMemory {
            bytes,
            what: what.into(),
            device: NAME.into(),
            detail: e.to_string(),
        })
    }

    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.device.free(DevicePtr(address)).map_err(|e| memory("free", address, 0, &e))
    }

    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.device.copy_to(DevicePtr(address), data).map_err(|e| memory("upload", address, data.len(), &e))
    }

    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        let bytes = data.len();
        self.device.copy_from(DevicePtr(address), data).map_err(|e| memory("download", address, bytes, &e))
    }

    fn limits(&self) -> DeviceLimits {
        DeviceLimits::of_sm(self.device.options().sm)
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        if launch.kernel.family == "plan" {
            let larger = |bytes: u32| bytes > launch.kernel.shared_bytes;
            for kernel in kernels_gpu::kernels() {
                if kernel.family == "plan" && larger(kernel.shared_bytes) {
                    let shared_bytes = kernel.shared_bytes;
                    let raw = RawLaunch { kernel, shared_bytes, ..launch.clone().into_raw() };
                    // SAFETY: the memory of a launch that this device was given, for a kernel that uses it alike.
                    self.count(&unsafe { Launch::from_raw(raw) })?;
                }
            }
        }
        self.count(launch)
    }
}

fn memory(call: &'static str, address: u64, bytes: usize, e: &dyn std::fmt::Display) -> DriverError {
    DriverError::Memory { call, address, bytes, detail: e.to_string() }
}

/// The steps: every element type, head dimension, group and mirror, over a sequence with full groups and
/// an open one, and one with an open group only; then the identity plan.
fn steps() -> Vec<(Workload, Mirror, Policy)> {
    let progressive = Policy::Progressive { mass: 0.95 };
    let mut steps = Vec::new();
    for dtype in [Dtype::Bf16, Dtype::F16] {
        for head_dim in [64, 128] {
            let workload = |group: usize| {
                let shape = Shape { layers: 1, q_heads: 2 * group, kv_heads: 2, head_dim, dtype };
                Workload::random(shape, &[264, 40], 7)
            };
            for group in [1, 2, 4, 8] {
                steps.push((workload(group), Mirror::Bits2, progressive));
            }
            steps.push((workload(2), Mirror::Bits4, progressive));
            steps.push((workload(2), Mirror::Box, Policy::Quest(psa::Budget::Fraction(0.5))));
            steps.push((workload(1), Mirror::Bits2, Policy::Dense));
        }
    }
    steps
}

/// One copy of three slots, since no step gathers.
fn gather(driver: &mut Counting) -> Result<(), DriverError> {
    let slot = 2 * 16 * 128 * 2;
    let source = driver.region(4 * slot, "source")?;
    driver.upload(source.address(), &vec![1; 4 * slot])?;
    let target = driver.region(4 * slot, "target")?;
    let pairs = driver.region(24, "pairs")?;
    driver.upload(pairs.address(), &[3u32, 0, 1, 2, 0, 3].map(u32::to_le_bytes).concat())?;
    let launch = psa::device::launches::gather(source, target, pairs, 3, slot, 2)
        .map_err(|e| DriverError::Launch { launch: "gather".into(), detail: e.to_string() })?;
    driver.launch(&launch)
}

/// The histogram of two heads of 40 blocks, since no step makes one.
fn histogram(driver: &mut Counting) -> Result<(), DriverError> {
    use kernels_gpu::histogram::{BINS, histogram};
    let mut put = |bytes: &[u8], what: &str| -> Result<Region, DriverError> {
        let region = driver.region(bytes.len(), what)?;
        driver.upload(region.address(), bytes)?;
        Ok(region)
    };
    let masses: Vec<u8> = (0..80).flat_map(|i| (-0.5 * i as f32).to_le_bytes()).collect();
    let args = histogram::Args {
        log_mass: put(&masses, "log_mass")?.input(),
        peak: put(&[0; 8], "peak")?.input(),
        lens: put(&640u32.to_le_bytes(), "lens")?.input(),
        counts: put(&[0; 8 * BINS], "counts")?.output(),
        heads: 2,
        max_blocks: 40,
    };
    let launch = histogram::launch([2, 1, 1], args)
        .map_err(|e| DriverError::Launch { launch: "histogram".into(), detail: e.to_string() })?;
    driver.launch(&launch)
}

/// The passes of long rows over two short ones, since no small step makes them.
fn passes(driver: &mut Counting) -> Result<(), DriverError> {
    let plan = MadeUpPlan { tokens: vec![640, 40], group: 2, target: 0.5, budget: u32::MAX, seed: 1 };
    let p = plan.place(driver)?;
    let launches = in_passes(p.shape, &p.batch, &p.addresses, p.goal)
        .map_err(|e| DriverError::Launch { launch: "plan in passes".into(), detail: e.to_string() })?;
    launches.iter().try_for_each(|launch| driver.launch(launch))
}

fn count() -> Result<BTreeMap<&'static str, Counters>, String> {
    let record = Record::default();
    let device = {
        let record = Arc::clone(&record);
        Device::with_driver(NAME, move || {
            Counting::new(Arc::clone(&record)).map(|driver| Box::new(driver) as Box<dyn Driver>)
        })
    };
    for (workload, mirror, policy) in steps() {
        run(&device, &workload, mirror, policy).map_err(|e| e.to_string())?;
    }
    Counting::new(Arc::clone(&record))
        .and_then(|mut driver| {
            gather(&mut driver)?;
            histogram(&mut driver)?;
            passes(&mut driver)
        })
        .map_err(|e| e.to_string())?;
    let record = record.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let missing: Vec<&str> =
        kernels_gpu::kernels().iter().map(|k| k.name).filter(|name| !record.contains_key(name)).collect();
    if missing.is_empty() {
        return Ok(record);
    }
    Err(format!(
        "no step launches {}\n  remedy: add a step for it to tests/src/bin/kernel-counters.rs",
        missing.join(", ")
    ))
}

fn main() -> ExitCode {
    let record = match count() {
        Ok(record) => record,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match serde_json::to_string(&record) {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
