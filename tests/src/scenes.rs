//! Launches of the shipped kernels, recorded from whole steps, that can be repeated alone.
//!
//! A scene is a device's memory as it was before a launch, the launch, and every byte of memory after it. So a
//! kernel can be run again under another schedule, or a changed one in its place, and compared byte by byte
//! without running the rest of the step.
//!
//! Trap: a scene says what the kernel does in *its* place of a step. What no step asks of it, no scene shows.

use std::sync::{Arc, Mutex};

use half::{bf16, f16};
use kernels_gpu::layout::{BLOCK, MAX_SPLITS, slot_elements};
use psa::device::plans::{in_one, in_passes};
use psa::driver::{Driver, DriverError};
use psa::{CacheConfig, Capacity, DecodePlan, Device, Dtype, Error, KvCache, Mirror, Policy, Shape};
use psa_codegen::{DeviceLimits, Launch, LaunchError, Region, SpecType};
use ptx_emulator::{
    Arg, Device as Machine, DevicePtr, Error as PtxError, LaunchConfig, Module, Options, Report,
};

use crate::plans::MadeUpPlan;
use crate::{Rng, Workload};

/// One launch in its surroundings.
#[derive(Clone, Debug)]
pub struct Scene {
    /// The step it is from.
    pub step: String,
    /// The launch.
    pub launch: Launch,
    /// What the emulator reported.
    pub report: Report,
    before: Machine,
    /// Live allocations: address and contents after the launch.
    after: Vec<(u64, Vec<u8>)>,
}

/// A scene run again.
#[derive(Debug)]
pub struct Replay {
    /// What the emulator reported, or why there was no run.
    pub report: Result<Report, PtxError>,
    /// Every byte of memory is as after the recorded launch.
    pub same_bytes: bool,
}

impl Scene {
    /// Name of the kernel.
    pub fn kernel(&self) -> &'static str {
        self.launch.kernel.name
    }

    /// Runs the kernel of the same name in `module` from the recorded memory. `adjust` may change the options,
    /// which are the defaults.
    pub fn replay(&self, module: &Module, adjust: impl FnOnce(&mut Options)) -> Replay {
        let mut machine = self.before.clone();
        adjust(machine.options_mut());
        let report = launch(&mut machine, module, &self.launch);
        let mut bytes = Vec::new();
        let same_bytes = self.after.iter().all(|(address, want)| {
            bytes.resize(want.len(), 0);
            machine.copy_from(DevicePtr(*address), &mut bytes).is_ok() && bytes == *want
        });
        Replay { report, same_bytes }
    }
}

fn launch(machine: &mut Machine, module: &Module, launch: &Launch) -> Result<Report, PtxError> {
    let args: Vec<Arg> = launch.args.iter().map(|a| Arg::Bytes(a.bytes())).collect();
    let config = LaunchConfig { grid: launch.grid, block: launch.block, shared_bytes: launch.shared_bytes };
    machine.launch(module, launch.kernel.name, config, &args)
}

/// An emulated device that keeps a scene of every launch.
struct Recorder {
    step: String,
    machine: Machine,
    module: Module,
    live: Vec<(u64, usize)>,
    scenes: Arc<Mutex<Vec<Scene>>>,
}

impl Recorder {
    fn new(step: &str, module: &Module, scenes: &Arc<Mutex<Vec<Scene>>>) -> Recorder {
        let options = Options { buffers: true, profile: true, ..Options::default() };
        Recorder {
            step: step.to_owned(),
            machine: Machine::new(options),
            module: module.clone(),
            live: Vec::new(),
            scenes: scenes.clone(),
        }
    }

    fn put<T: bytemuck::Pod>(&mut self, data: &[T], what: &str) -> Result<Region, DriverError> {
        let region = self.region(size_of_val(data), what)?;
        self.upload(region.address(), bytemuck::cast_slice(data))?;
        Ok(region)
    }
}

fn memory(call: &'static str, address: u64, bytes: usize) -> impl Fn(PtxError) -> DriverError {
    move |e| DriverError::Memory { call, address, bytes, detail: e.to_string() }
}

impl Driver for Recorder {
    fn name(&self) -> String {
        "recorder".into()
    }

    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        let bytes = bytes.max(1);
        let address = self.machine.alloc(bytes as u64, what).map_err(memory("alloc", 0, bytes))?.0;
        self.live.push((address, bytes));
        Ok(address)
    }

    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.live.retain(|(a, _)| *a != address);
        self.machine.free(DevicePtr(address)).map_err(memory("free", address, 0))
    }

    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.machine.copy_to(DevicePtr(address), data).map_err(memory("upload", address, data.len()))
    }

    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        let bytes = data.len();
        self.machine.copy_from(DevicePtr(address), data).map_err(memory("download", address, bytes))
    }

    fn limits(&self) -> DeviceLimits {
        DeviceLimits::of_sm(self.machine.options().sm)
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        let mut before = self.machine.clone();
        let report = self::launch(&mut self.machine, &self.module, launch)
            .map_err(|e| DriverError::Launch { launch: launch.kernel.name.into(), detail: e.to_string() })?;
        if let Some(first) = report.findings.first() {
            return Err(DriverError::Check {
                launch: launch.kernel.name.into(),
                findings: report.findings.len(),
                first: first.to_string(),
            });
        }
        *before.options_mut() = Options::default();
        let mut after = Vec::with_capacity(self.live.len());
        for &(address, bytes) in &self.live {
            let mut data = vec![0; bytes];
            self.machine
                .copy_from(DevicePtr(address), &mut data)
                .map_err(memory("download", address, bytes))?;
            after.push((address, data));
        }
        let scene = Scene { step: self.step.clone(), launch: launch.clone(), report, before, after };
        if let Ok(mut scenes) = self.scenes.lock() {
            scenes.push(scene);
        }
        Ok(())
    }
}

/// A step to record.
#[derive(Clone, Debug)]
pub struct Step {
    /// Geometry; of its layers only the last is used, so that a forgotten layer shows.
    pub shape: Shape,
    /// Tokens of the batch's sequences.
    pub lengths: Vec<usize>,
    /// Metadata.
    pub mirror: Mirror,
    /// What is read.
    pub policy: Policy,
    /// Factor of the queries: the larger, the sharper the softmax.
    pub sharpness: f32,
    /// Only kernels whose names begin so; empty: all.
    pub only: &'static [&'static str],
}

impl Step {
    /// All launches of appending the batch and decoding one step of it, on the kernels of `module`.
    ///
    /// # Errors
    /// The crate's, a finding of a checker included.
    pub fn record(&self, module: &Module) -> Result<Vec<Scene>, Error> {
        let name = format!(
            "{} d{} group {}, {} mirror, {} {:?}",
            self.shape.dtype,
            self.shape.head_dim,
            self.shape.group(),
            self.mirror,
            self.policy,
            self.lengths
        );
        let scenes = Arc::new(Mutex::new(Vec::new()));
        let (module, kept) = (module.clone(), scenes.clone());
        let device = Device::with_driver("recorder", move || {
            Ok(Box::new(Recorder::new(&name, &module, &kept)) as Box<dyn Driver>)
        });
        self.run(&device)?;
        let mut scenes = scenes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        scenes.retain(|s| self.only.is_empty() || self.only.iter().any(|p| s.kernel().starts_with(p)));
        Ok(std::mem::take(&mut *scenes))
    }

    /// The step; the batch lists the sequences in another order than the tables.
    fn run(&self, device: &Device) -> Result<(), Error> {
        let shape = self.shape;
        let workload = Workload::random(shape, &self.lengths, 1).sharpened(self.sharpness);
        let layer = shape.layers - 1;
        let tokens: usize = self.lengths.iter().map(|n| n.next_multiple_of(BLOCK)).sum();
        let config = CacheConfig {
            capacity: Capacity::Tokens(tokens * shape.layers),
            max_sequences: self.lengths.len() + 1,
            mirror: self.mirror,
            ..CacheConfig::default()
        };
        let mut cache = KvCache::new(device, shape, config)?;
        // The first row of the tables stays empty.
        cache.add_sequence()?;
        let row = shape.token_elements();
        let mut ids = Vec::new();
        for s in &workload.sequences {
            let id = cache.add_sequence()?;
            // Two pieces, so that groups fill across appends.
            let first = s.tokens - s.tokens.min(37);
            for (from, to) in [(0, first), (first, s.tokens)] {
                if from < to {
                    cache.append(
                        id,
                        layer,
                        s.k.rows(from * row, to * row),
                        s.v.rows(from * row, to * row),
                    )?;
                }
            }
            ids.push(id);
        }
        ids.reverse();
        let q = crate::stack(shape.dtype, workload.sequences.iter().rev().map(|s| &s.q));
        let mut out = vec![0.0; ids.len() * shape.query_elements()];
        let mut lse = vec![0.0; ids.len() * shape.q_heads];
        DecodePlan::new(&cache, &ids, self.policy)?
            .attend_with_lse(&mut cache, layer, q.all(), &mut out, &mut lse)
            .map(|_| ())
    }
}

/// `gather` between two arenas, with more and fewer CTAs than pairs.
///
/// # Errors
/// [`DriverError`], a finding of a checker included.
pub fn record_gather(module: &Module) -> Result<Vec<Scene>, DriverError> {
    let scenes = Arc::new(Mutex::new(Vec::new()));
    // 5 KiB: 256 threads of 16 bytes go round once and a part.
    let slot = 5120usize;
    for ctas in [2, 5] {
        let mut r = Recorder::new(&format!("gather on {ctas} CTAs"), module, &scenes);
        let source: Vec<u8> = (0..4 * slot).map(|i| (i * 7 + i / 251) as u8).collect();
        let args = kernels_gpu::gather::gather::Args {
            source: r.put(&source, "source")?.input(),
            target: r.region(4 * slot, "target")?.in_out(),
            pairs: r.put(&[3u32, 0, 0, 2, 1, 3], "pairs")?.input(),
            count: 3,
            slot_bytes: slot as u32,
        };
        r.launch(&kernels_gpu::gather::gather::launch([ctas, 1, 1], args).map_err(no_instance)?)?;
    }
    let mut scenes = scenes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(std::mem::take(&mut *scenes))
}

/// `plan` over made-up masses, two query heads: in one launch, or in passes.
///
/// # Errors
/// [`DriverError`], a finding of a checker included.
pub fn record_plan(
    module: &Module,
    rows: &[usize],
    target: f32,
    passes: bool,
) -> Result<Vec<Scene>, DriverError> {
    let scenes = Arc::new(Mutex::new(Vec::new()));
    let how = if passes { " in passes" } else { "" };
    let mut r = Recorder::new(&format!("plan of {rows:?} blocks, target {target}{how}"), module, &scenes);
    let most = rows.iter().copied().max().unwrap_or(1);
    let plan = MadeUpPlan {
        tokens: rows.iter().map(|&n| n * BLOCK - 3).collect(),
        group: 2,
        target,
        budget: most as u32 * 3 / 4,
        seed: most as u64,
    };
    let p = plan.place(&mut r)?;
    let launches = match passes {
        true => in_passes(p.shape, &p.batch, &p.addresses, p.goal),
        false => in_one(&r.limits(), p.shape, &p.batch, &p.addresses, p.goal).map(|launch| vec![launch]),
    };
    for launch in launches.map_err(no_instance)? {
        r.launch(&launch)?;
    }
    let mut scenes = scenes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(std::mem::take(&mut *scenes))
}

fn no_instance(e: LaunchError) -> DriverError {
    DriverError::Launch { launch: "a kernel".into(), detail: e.to_string() }
}

/// The first CTA of `attend` over a context longer than the host's limit: 33 pages and more a warp, so that it
/// turns to a second batch of 32 pages, fills its ring again and again, and meets the incomplete page late. The
/// other 63 splits are not launched, and the blocks share eight slots.
///
/// # Errors
/// [`DriverError`], a finding of a checker included.
pub fn record_long_attend<T: SpecType + bytemuck::Pod>(
    module: &Module,
    element: impl Fn(f32) -> T,
    head_dim: usize,
    group: usize,
) -> Result<Vec<Scene>, DriverError> {
    use kernels_gpu::attend::attend;
    const SLOTS: usize = 8;
    // The first split's warps take the ranks 0, 64, 128 and 192 and every 256th after them.
    const BLOCKS: usize = 32 * 256 + 132;
    let scenes = Arc::new(Mutex::new(Vec::new()));
    let step = format!("one split of {BLOCKS} blocks, d{head_dim} group {group}");
    let mut r = Recorder::new(&step, module, &scenes);
    let mut rng = Rng(head_dim as u64);
    let mut random = |n: usize| -> Vec<T> { (0..n).map(|_| element(rng.normal())).collect() };
    let table: Vec<u32> = (0..BLOCKS as u32).map(|b| b * 5 % SLOTS as u32).collect();
    let mut order: Vec<u32> = (0..BLOCKS as u32).collect();
    order.swap(32 * 256, BLOCKS - 1);
    let args = attend::Args {
        q: r.put(&random(group * head_dim), "q")?.input(),
        arena: r.put(&random(SLOTS * slot_elements(head_dim)), "arena")?.input(),
        block_table: r.put(&table, "block_table")?.input(),
        seqs: r.put(&[0u32], "seqs")?.input(),
        lens: r.put(&[(BLOCKS * BLOCK) as u32 - 5], "lens")?.input(),
        order: r.put(&order, "order")?.input(),
        count: r.put(&[BLOCKS as u32], "count")?.input(),
        partial: r.region(4 * MAX_SPLITS * group * head_dim, "partial")?.output(),
        partial_ml: r.region(8 * MAX_SPLITS * group, "partial_ml")?.output(),
        scale: (head_dim as f32).sqrt().recip(),
        layer: 0,
        layers: 1,
        kv_heads: 1,
        group: group as u32,
        max_blocks: BLOCKS as u32,
        max_splits: MAX_SPLITS as u32,
    };
    r.launch(&attend::launch::<T>(head_dim, [1, 1, 1], args).map_err(no_instance)?)?;
    let mut scenes = scenes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(std::mem::take(&mut *scenes))
}

/// `histogram` of two heads: one whole round and a part of one.
///
/// # Errors
/// [`DriverError`], a finding of a checker included.
pub fn record_histogram(module: &Module) -> Result<Vec<Scene>, DriverError> {
    use kernels_gpu::histogram::{BINS, histogram};
    const BLOCKS: usize = 40;
    let scenes = Arc::new(Mutex::new(Vec::new()));
    let mut r = Recorder::new(&format!("histogram of {BLOCKS} blocks"), module, &scenes);
    let masses: Vec<f32> = (0..2 * BLOCKS).map(|i| -0.5 * i as f32).collect();
    let args = histogram::Args {
        log_mass: r.put(&masses, "log_mass")?.input(),
        peak: r.put(&[0.0f32, -20.0], "peak")?.input(),
        lens: r.put(&[(BLOCKS * BLOCK) as u32 - 3], "lens")?.input(),
        counts: r.region(4 * 2 * BINS, "counts")?.output(),
        heads: 2,
        max_blocks: BLOCKS as u32,
    };
    r.launch(&histogram::launch([2, 1, 1], args).map_err(no_instance)?)?;
    let mut scenes = scenes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(std::mem::take(&mut *scenes))
}

/// Why the scenes could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum SceneError {
    /// The committed PTX does not load.
    #[error("the committed PTX does not load: {0}; run `cargo xtask build-ptx`")]
    Module(#[from] PtxError),
    /// A step failed.
    #[error("a step failed on the unchanged kernels: {0}; run `cargo xtask test --quick`")]
    Step(#[from] Error),
    /// A single launch failed.
    #[error("a launch failed on the unchanged kernels: {0}; run `cargo xtask test --quick`")]
    Launch(#[from] DriverError),
}

/// Which kernels are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// One instance of every body that differs in shape.
    Representative,
    /// Every kernel of the module.
    Every,
}

fn shape(dtype: Dtype, head_dim: usize, kv_heads: usize, group: usize) -> Shape {
    Shape { layers: 2, q_heads: kv_heads * group, kv_heads, head_dim, dtype }
}

/// The steps of an extent. Between them: one token, every fill of the last block, full and open groups, several
/// rounds of every loop, dense, sparse and ragged batches, plans that are topped up and plans that are not, groups
/// that fill their tile of query heads and groups that do not.
pub fn steps(extent: Extent) -> Vec<Step> {
    use psa::Budget::{Blocks, Fraction};
    use psa::Dtype::{Bf16, F16};
    let progressive = Policy::Progressive { mass: 0.9 };
    let step = |shape, lengths: &[usize], mirror, policy, sharpness| Step {
        shape,
        lengths: lengths.to_vec(),
        mirror,
        policy,
        sharpness,
        only: &[],
    };
    let every_fill: Vec<usize> = (1..=16).collect();
    // The estimate of two bits is far off where scores are large, so the prediction falls short.
    let short = Policy::Progressive { mass: 0.97 };
    let merge = ["merge_"].as_slice();
    // Queries of zeros: every block has the same mass. 4 bits predict 24 of 32 blocks, which hold the target to the
    // bit, so that merge decides in exact arithmetic.
    let tie = Policy::Progressive { mass: 0.75 };
    let mut steps = vec![
        step(shape(Bf16, 64, 2, 3), &[83, 1], Mirror::Bits4, progressive, 1.0),
        step(shape(Bf16, 64, 1, 4), &[700, 150], Mirror::Bits4, progressive, 2.5),
        Step { only: merge, ..step(shape(Bf16, 64, 2, 3), &[500, 700], Mirror::Bits2, short, 3.5) },
        step(shape(Bf16, 64, 2, 3), &[150, 64, 7], Mirror::Bits4, Policy::Dense, 1.0),
        step(shape(Bf16, 64, 1, 4), &every_fill, Mirror::Bits4, Policy::Dense, 1.0),
        step(shape(Bf16, 64, 2, 4), &[200, 70], Mirror::Box, Policy::Quest(Blocks(6)), 1.0),
        step(shape(F16, 128, 2, 1), &[131, 40], Mirror::Bits2, progressive, 1.0),
        step(shape(F16, 128, 1, 1), &[600], Mirror::Bits2, progressive, 3.0),
        step(shape(F16, 128, 2, 1), &[500, 290], Mirror::Bits2, short, 3.5),
        step(shape(F16, 128, 1, 1), &[290], Mirror::Bits2, Policy::TopK(Fraction(0.4)), 1.0),
        step(shape(F16, 128, 1, 1), &every_fill, Mirror::Bits2, Policy::Dense, 1.0),
        Step { only: merge, ..step(shape(Bf16, 64, 1, 3), &[512, 80], Mirror::Bits4, tie, 0.0) },
        Step { only: merge, ..step(shape(F16, 128, 1, 1), &[512, 80], Mirror::Bits4, tie, 0.0) },
    ];
    if extent == Extent::Every {
        for dtype in [Bf16, F16] {
            for d in [64, 128] {
                for group in [1, 2, 3, 8] {
                    for (mirror, policy) in [
                        (Mirror::Bits2, short),
                        (Mirror::Bits4, Policy::TopP { mass: 0.9 }),
                        (Mirror::Box, Policy::Quest(Fraction(0.3))),
                    ] {
                        steps.push(step(shape(dtype, d, 1, group), &[190, 64], mirror, policy, 3.5));
                    }
                }
            }
        }
    }
    steps
}

/// The scenes of an extent, those of few instructions first.
///
/// # Errors
/// [`SceneError`]: the unchanged kernels fail.
pub fn record(module: &Module, extent: Extent) -> Result<Vec<Scene>, SceneError> {
    let mut scenes = record_gather(module)?;
    scenes.extend(record_plan(module, &[300, 1], 0.5, false)?);
    scenes.extend(record_plan(module, &[40], 0.0, false)?);
    scenes.extend(record_plan(module, &[300, 1], 0.5, true)?);
    scenes.extend(record_plan(module, &[4], 0.0, true)?);
    scenes.extend(record_histogram(module)?);
    scenes.extend(record_long_attend(module, bf16::from_f32, 64, 3)?);
    scenes.extend(record_long_attend(module, f16::from_f32, 128, 1)?);
    if extent == Extent::Every {
        scenes.extend(record_plan(module, &[600], 0.5, false)?);
        scenes.extend(record_plan(module, &[2100], 0.5, false)?);
        scenes.extend(record_plan(module, &[8300, 70], 0.5, true)?);
    }
    for step in steps(extent) {
        scenes.extend(step.record(module)?);
    }
    scenes.sort_by_key(|s| s.report.counters.lane_instructions);
    Ok(scenes)
}
