//! Launches for measuring the emulator, each with a plain Rust loop that does the same arithmetic.
//!
//! `score` and `attend` are the shipped kernels, with the arguments of a decode step over the bundled
//! traces: 4,096 tokens, 3 query heads of one KV head, 64 dims, f16 (the entry is the one for a group of
//! 4). The tiled product is compiled by nvcc; the reduction by shuffles is written here. A launch writes
//! what it wrote before, so it can be repeated.

use half::f16;
use psa::driver::{Driver, DriverError};
use psa::{DecodePlan, KvCache, Mirror, Policy};
use psa_codegen::{DeviceLimits, Launch};
use psa_tests::Workload;
use ptx_emulator::{Arg, Checks, Device, DevicePtr, LaunchConfig, Module, Options, Report};
use std::hint::black_box;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An emulated device and what was launched on it.
struct Machine {
    device: Device,
    module: Module,
    launches: Vec<(String, LaunchConfig, Vec<Arg>)>,
}

/// A driver of the toolkit that keeps its launches.
#[derive(Clone)]
struct Recorder(Arc<Mutex<Machine>>);

impl Recorder {
    fn new(ptx: &str) -> Recorder {
        let module = Module::parse(ptx).expect("shipped and committed PTX parses");
        let device = Device::new(Options::default());
        Recorder(Arc::new(Mutex::new(Machine { device, module, launches: Vec::new() })))
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(call: &'static str, address: u64, bytes: usize, e: &ptx_emulator::Error) -> DriverError {
    DriverError::Memory { call, address, bytes, detail: e.to_string() }
}

impl Driver for Recorder {
    fn name(&self) -> String {
        "emulator".into()
    }
    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        let p = self.machine().device.alloc(bytes.max(1) as u64, what);
        p.map(|p| p.0).map_err(|e| failed("alloc", 0, bytes, &e))
    }
    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.machine().device.free(DevicePtr(address)).map_err(|e| failed("free", address, 0, &e))
    }
    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        let done = self.machine().device.copy_to(DevicePtr(address), data);
        done.map_err(|e| failed("upload", address, data.len(), &e))
    }
    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        let done = self.machine().device.copy_from(DevicePtr(address), data);
        done.map_err(|e| failed("download", address, data.len(), &e))
    }
    fn limits(&self) -> DeviceLimits {
        DeviceLimits::of_sm(self.machine().device.options().sm)
    }
    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        let args: Vec<Arg> = launch.args.iter().map(|a| Arg::Bytes(a.bytes())).collect();
        let config =
            LaunchConfig { grid: launch.grid, block: launch.block, shared_bytes: launch.shared_bytes };
        let m = &mut *self.machine();
        let detail = match m.device.launch(&m.module, launch.kernel.name, config, &args) {
            Ok(r) if r.is_clean() => None,
            Ok(r) => Some(format!("{:?}", r.findings)),
            Err(e) => Some(e.to_string()),
        };
        if let Some(detail) = detail {
            return Err(DriverError::Launch { launch: launch.kernel.name.into(), detail });
        }
        m.launches.push((launch.kernel.name.to_string(), config, args));
        Ok(())
    }
}

/// One launch, or several in a row, to be repeated under different options.
pub struct Case {
    /// Short name.
    pub name: &'static str,
    recorder: Recorder,
    /// Which of its launches.
    kernels: &'static [&'static str],
    /// The same arithmetic as a plain loop over host memory.
    pub plain: Box<dyn FnMut()>,
    /// Keeps the memory of the launches.
    _owner: Option<(KvCache, DecodePlan)>,
}

/// How a case is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// Every checker, with the counters of memory traffic; or none of both.
    pub checks: bool,
    /// Host threads.
    pub threads: usize,
}

impl Case {
    /// Runs it; gives the lane-instructions.
    ///
    /// # Panics
    /// When a launch fails or is not clean.
    pub fn run(&mut self, how: How) -> u64 {
        let m = &mut *self.recorder.machine();
        let options = m.device.options_mut();
        options.checks = if how.checks { Checks::all() } else { Checks::none() };
        (options.counters, options.threads) = (how.checks, how.threads);
        let chosen = m.launches.iter().filter(|l| self.kernels.iter().any(|k| l.0.starts_with(k)));
        let mut executed = 0;
        for (kernel, config, args) in chosen {
            let r: Report =
                m.device.launch(&m.module, kernel, *config, args).unwrap_or_else(|e| panic!("{kernel}: {e}"));
            assert!(r.is_clean(), "{kernel}: {:?}", r.findings);
            executed += r.counters.lane_instructions;
        }
        assert!(executed > 0, "{}: no launch of {:?}", self.name, self.kernels);
        executed
    }

    /// Names, grids and threads of the launches.
    pub fn launches(&self) -> Vec<String> {
        let m = self.recorder.machine();
        let chosen = m.launches.iter().filter(|l| self.kernels.iter().any(|k| l.0.starts_with(k)));
        chosen.map(|(k, c, _)| format!("{k} {:?} x {:?}", c.grid, c.block)).collect()
    }
}

/// All cases.
///
/// # Panics
/// When the traces are missing or a launch fails.
pub fn cases() -> Vec<Case> {
    let progressive = Policy::Progressive { mass: 0.95 };
    vec![
        shipped("score", &["score"], progressive, score_loop()),
        shipped("attend", &["attend"], Policy::Dense, attend_loop()),
        shipped("sparse step", &[""], progressive, Box::new(|| ())),
        product(),
        shuffles(),
    ]
}

/// The first case of the traces: 4,096 tokens, 3 query heads.
fn workload() -> Workload {
    let mut all = crate::traces();
    all.sequences.truncate(1);
    all
}

fn shipped(
    name: &'static str,
    kernels: &'static [&'static str],
    policy: Policy,
    plain: Box<dyn FnMut()>,
) -> Case {
    let recorder = Recorder::new(kernels_gpu::PTX);
    let driver = recorder.clone();
    let device =
        psa::Device::with_driver("emulator", move || Ok(Box::new(driver.clone()) as Box<dyn Driver>));
    let workload = workload();
    let (mut cache, ids) = crate::filled(&device, &workload, Mirror::Bits2).expect("the workload fits");
    let mut plan = DecodePlan::new(&cache, &ids, policy).expect("the policy runs");
    recorder.machine().launches.clear();
    let mut out = vec![0.0; workload.shape.query_elements()];
    plan.attend(&mut cache, 0, crate::queries(&workload).all(), &mut out).expect("a step");
    Case { name, recorder, kernels, plain, _owner: Some((cache, plan)) }
}

const TOKENS: usize = 4096;
const DIMS: usize = 64;
const HEADS: usize = 3;

fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect()
}

/// Scores from two-bit codes: per block of 16 tokens the largest score of each head.
fn score_loop() -> Box<dyn FnMut()> {
    let q = numbers(HEADS * DIMS);
    let codes: Vec<u8> = (0..TOKENS * DIMS / 4).map(|i| (i * 89) as u8).collect();
    let (scale, zero) = (numbers(TOKENS), numbers(TOKENS));
    let mut best = vec![[0f32; HEADS]; TOKENS / 16];
    Box::new(move || {
        for (b, best) in best.iter_mut().enumerate() {
            *best = [f32::NEG_INFINITY; HEADS];
            for t in 16 * b..16 * b + 16 {
                let row = &codes[t * DIMS / 4..][..DIMS / 4];
                for h in 0..HEADS {
                    let mut s = 0.0;
                    for d in 0..DIMS {
                        let code = f32::from(row[d / 4] >> (2 * (d % 4)) & 3);
                        s += q[h * DIMS + d] * (code * scale[t] + zero[t]);
                    }
                    best[h] = best[h].max(s);
                }
            }
        }
        black_box(&best);
    })
}

/// Attention over all tokens, with keys and values in f16.
fn attend_loop() -> Box<dyn FnMut()> {
    let q = numbers(HEADS * DIMS);
    let half = |x: Vec<f32>| x.into_iter().map(f16::from_f32).collect::<Vec<f16>>();
    let (k, v) = (half(numbers(TOKENS * DIMS)), half(numbers(TOKENS * DIMS + 1)));
    let mut out = vec![0f32; HEADS * DIMS];
    Box::new(move || {
        for h in 0..HEADS {
            let (mut largest, mut sum, mut acc) = (f32::NEG_INFINITY, 0f32, [0f32; DIMS]);
            for t in 0..TOKENS {
                let row = &k[t * DIMS..][..DIMS];
                let s: f32 = (0..DIMS).map(|d| q[h * DIMS + d] * row[d].to_f32()).sum::<f32>() * 0.125;
                if s > largest {
                    let old = (largest - s).exp();
                    sum *= old;
                    acc.iter_mut().for_each(|a| *a *= old);
                    largest = s;
                }
                let p = (s - largest).exp();
                sum += p;
                acc.iter_mut().zip(&v[t * DIMS..]).for_each(|(a, v)| *a += p * v.to_f32());
            }
            for d in 0..DIMS {
                out[h * DIMS + d] = acc[d] / sum;
            }
        }
        black_box(&out);
    })
}

fn buffers(recorder: &Recorder, input: &[&[f32]], out: u64) -> Vec<Arg> {
    let m = &mut *recorder.machine();
    let mut args: Vec<Arg> = input
        .iter()
        .map(|x| {
            let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
            Arg::Ptr(m.device.alloc_init(&bytes, "in").expect("there is room"))
        })
        .collect();
    args.push(Arg::Ptr(m.device.alloc(4 * out, "out").expect("there is room")));
    args
}

/// 128 x 128 x 128 in single precision.
fn product() -> Case {
    const N: usize = 128;
    let recorder = Recorder::new(include_str!("../../emulator/tests/cuda/matmul.ptx"));
    let (a, b) = (numbers(N * N), numbers(N * N + 1)[1..].to_vec());
    let mut args = buffers(&recorder, &[&a, &b], (N * N) as u64);
    args.extend([Arg::U32(N as u32), Arg::U32(N as u32), Arg::U32(N as u32)]);
    let grid = [N as u32 / 16, N as u32 / 16, 1];
    let config = LaunchConfig { grid, block: [16, 16, 1], shared_bytes: 0 };
    recorder.machine().launches.push(("matmul".into(), config, args));
    let mut c = vec![0f32; N * N];
    let plain = Box::new(move || {
        for i in 0..N {
            let row = &mut c[i * N..][..N];
            row.fill(0.0);
            for k in 0..N {
                let x = a[i * N + k];
                row.iter_mut().zip(&b[k * N..]).for_each(|(c, b)| *c += x * b);
            }
        }
        black_box(&c);
    });
    Case { name: "nvcc tiled product", recorder, kernels: &["matmul"], plain, _owner: None }
}

/// Sums of 2,048 words a CTA: each lane adds 16, then the warp by five shuffles, 64 CTAs of 128 threads.
const SHUFFLES: &str = "
.version 7.8
.target sm_80
.address_size 64
.visible .entry sums(.param .u64 x, .param .u64 y) {
    .reg .b64 %rd<8>; .reg .b32 %r<16>; .reg .f32 %f<8>; .reg .pred %p<3>;
    ld.param.u64 %rd1, [x];
    ld.param.u64 %rd2, [y];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mad.lo.u32 %r3, %r2, 2048, %r1;
    mul.wide.u32 %rd3, %r3, 4;
    add.s64 %rd3, %rd1, %rd3;
    mov.u32 %r4, 0;
    mov.f32 %f1, 0f00000000;
LOOP:
    ld.global.nc.f32 %f2, [%rd3];
    shfl.sync.bfly.b32 %f3, %f2, 16, 31, -1;
    add.rn.f32 %f2, %f2, %f3;
    shfl.sync.bfly.b32 %f3, %f2, 8, 31, -1;
    add.rn.f32 %f2, %f2, %f3;
    shfl.sync.bfly.b32 %f3, %f2, 4, 31, -1;
    add.rn.f32 %f2, %f2, %f3;
    shfl.sync.bfly.b32 %f3, %f2, 2, 31, -1;
    add.rn.f32 %f2, %f2, %f3;
    shfl.sync.bfly.b32 %f3, %f2, 1, 31, -1;
    add.rn.f32 %f2, %f2, %f3;
    add.rn.f32 %f1, %f1, %f2;
    add.s64 %rd3, %rd3, 512;
    add.u32 %r4, %r4, 1;
    setp.lt.u32 %p1, %r4, 16;
    @%p1 bra LOOP;
    and.b32 %r5, %r1, 31;
    setp.ne.u32 %p2, %r5, 0;
    @%p2 ret;
    mad.lo.u32 %r6, %r2, 128, %r1;
    mul.wide.u32 %rd4, %r6, 4;
    add.s64 %rd4, %rd2, %rd4;
    st.global.f32 [%rd4], %f1;
    ret;
}";

fn shuffles() -> Case {
    const CTAS: usize = 64;
    let recorder = Recorder::new(SHUFFLES);
    let x = numbers(CTAS * 2048);
    let args = buffers(&recorder, &[&x], CTAS as u64 * 128);
    let config = LaunchConfig { grid: [CTAS as u32, 1, 1], block: [128, 1, 1], shared_bytes: 0 };
    recorder.machine().launches.push(("sums".into(), config, args));
    let mut y = vec![0f32; CTAS * 4];
    let plain = Box::new(move || {
        for (w, y) in y.iter_mut().enumerate() {
            let base = w / 4 * 2048 + w % 4 * 32;
            *y = (0..16).map(|i| x[base + i * 128..][..32].iter().sum::<f32>()).sum();
        }
        black_box(&y);
    });
    Case { name: "shuffle reduction", recorder, kernels: &["sums"], plain, _owner: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_runs_clean_and_executes_the_same_on_two_threads() {
        for mut case in cases() {
            let one = case.run(How { checks: true, threads: 1 });
            assert_eq!(one, case.run(How { checks: false, threads: 2 }), "{}", case.name);
            (case.plain)();
        }
    }
}
