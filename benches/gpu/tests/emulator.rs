//! Everything that the program does, on the emulator; and that it would notice a wrong kernel.

use psa::driver::{Driver, DriverError, Emulated, EmulatedOptions, Timing};
use psa_codegen::{DeviceLimits, Launch};
use psa_gpu::check::{self, Extent};
use psa_gpu::ledger::{self, book::Book};
use psa_gpu::record::{Record, TimeRecord};
use psa_gpu::target::{Backend, Target};
use psa_gpu::time::inputs::Template;
use psa_gpu::time::rig::Setting;
use psa_gpu::time::{self, Options};

fn quiet() -> bool {
    std::env::var_os("PSA_QUICK").is_some()
}

fn options(extent: Extent) -> check::Options<'static> {
    check::Options { extent, seed: 1, traces: None, progress: &|_| {} }
}

#[test]
fn every_kernel_is_exercised_and_agrees_on_the_emulator() {
    let target = Target::open(Backend::Emulator).unwrap();
    let extent = if quiet() { Extent::Smoke } else { Extent::Quick };
    let outcome = check::run(&target, &options(extent));
    assert!(outcome.good(), "{}", outcome.text());
}

#[test]
fn a_wrong_kernel_is_found_and_named() {
    // merge takes 2^l for log2 l: outputs stay right, the log-sum-exp does not.
    let ptx = kernels_gpu::PTX.replace("lg2.approx.ftz.f32", "ex2.approx.ftz.f32");
    let driver = Emulated::with_ptx(EmulatedOptions::default(), &ptx).unwrap();
    let outcome = check::run(&Target::new(Box::new(driver)), &options(Extent::Smoke));
    assert!(!outcome.good());
    let merge = outcome.kernels.iter().find(|k| k.kernel == "merge_bf16_d128").unwrap();
    assert!(merge.passed < merge.tried && merge.failures[0].contains("lse"), "{merge:?}");
    let plan = outcome.kernels.iter().find(|k| k.kernel == "plan_n8192").unwrap();
    assert_eq!(plan.passed, plan.tried, "a kernel that runs alone is not blamed");
}

#[test]
fn the_ledger_of_the_emulator_is_the_committed_one() {
    let outcome = ledger::run(Backend::Emulator, &Book::committed().unwrap()).unwrap();
    assert!(outcome.good(), "{}", outcome.text());
    assert!(outcome.notes.is_empty(), "{:?}", outcome.notes);
}

/// The emulator with a made-up clock: a round takes 10 microseconds a launch, a copy 1 a MiB.
struct Clock {
    emulated: Emulated,
    /// Bytes that a copy may have.
    room: usize,
}

impl Clock {
    fn boxed(room: usize) -> Box<dyn Driver> {
        Box::new(Clock { emulated: Emulated::new(EmulatedOptions::default()).unwrap(), room })
    }
}

impl Driver for Clock {
    fn name(&self) -> String {
        "made-up clock".into()
    }
    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        self.emulated.alloc(bytes, what)
    }
    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.emulated.free(address)
    }
    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.emulated.upload(address, data)
    }
    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        self.emulated.download(address, data)
    }
    fn limits(&self) -> DeviceLimits {
        self.emulated.limits()
    }
    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        self.emulated.launch(launch)
    }
    fn time(&mut self, launches: &[Launch], how: Timing) -> Result<Option<Vec<f32>>, DriverError> {
        Ok(Some(vec![10.0 * launches.len() as f32; how.rounds as usize]))
    }
    fn time_copy(&mut self, bytes: usize, how: Timing) -> Result<Option<Vec<f32>>, DriverError> {
        if bytes > self.room {
            let (what, device) = ("copy".into(), self.name());
            return Err(DriverError::OutOfMemory { bytes, what, device, detail: "full".into() });
        }
        Ok(Some(vec![(bytes >> 20) as f32; how.rounds as usize]))
    }
}

fn times(records: &[Record]) -> Vec<&TimeRecord> {
    records.iter().filter_map(|r| if let Record::Time(t) = r { Some(t) } else { None }).collect()
}

const QUICK: Options = Options { quick: true, budget: std::time::Duration::from_secs(3600) };

#[test]
fn timings_come_with_bytes_shares_and_what_was_read() {
    let mut driver = Clock::boxed(1 << 28);
    let settings =
        [Setting { batch: 2, tokens: 1024, group: 4 }, Setting { batch: 1, tokens: 512, group: 8 }];
    let outcome = time::run(driver.as_mut(), &Template::made_up(1), &settings, &QUICK, &|_| {}).unwrap();
    assert!(outcome.timed && outcome.not_sparse.is_empty());
    let records = times(&outcome.records);

    let copy = records[0];
    // What does not fit is halved: 2^28 bytes, read and written, in 256 us.
    assert_eq!((copy.what.as_str(), copy.bytes, copy.median_us), ("copy", 1 << 29, 256.0));
    let overheads: Vec<_> = records.iter().filter(|r| r.what == "launch").collect();
    assert_eq!(overheads.len(), 2);
    assert!(overheads.iter().all(|r| (r.median_us - 10.0).abs() < 1e-3));

    let steps: Vec<_> = records.iter().filter(|r| r.what == "step").collect();
    let arms: Vec<_> = steps.iter().map(|r| (r.policy.as_str(), r.batch)).collect();
    let expected = ["dense", "top-k:0.1", "progressive:0.95"];
    assert_eq!(arms, [2, 1].iter().flat_map(|&b| expected.map(|a| (a, b))).collect::<Vec<_>>());
    let (dense, top_k) = (steps[0], steps[1]);
    // 2 sequences of 64 blocks of 8 KV heads, 8 KiB each; queries and outputs beside them.
    assert_eq!((dense.blocks_read, dense.blocks_total), (1024, 1024));
    assert_eq!(dense.bytes, 1024 * 8192 + 2 * 32 * 128 * 2 + 2 * 32 * 129 * 4);
    assert_eq!(top_k.blocks_read, 7 * 16, "a tenth of 64, rounded up, of each row");
    // .11 of the blocks; of the mirror .078 to .141 of the bytes of K and V.
    assert!(top_k.bytes > dense.bytes / 6 && top_k.bytes < dense.bytes / 10 * 3);
    // 10 us a launch: plan_identity, attend, merge; score_nested, refine, plan, attend, merge.
    assert_eq!((dense.median_us, top_k.median_us), (30.0, 50.0));
    let share = dense.bytes as f64 / 30.0 / (copy.bytes as f64 / 256.0);
    assert!((dense.copy_share - share).abs() < 1e-9);
    for stage in ["score_nested", "refine", "plan", "attend", "merge"] {
        assert!(records.iter().any(|r| r.what == stage && r.bytes > 0 && r.median_us == 10.0), "{stage}");
    }
}

#[test]
fn a_setting_without_time_or_memory_is_left_out_and_said() {
    let mut driver = Clock::boxed(1 << 30);
    let late = Options { budget: std::time::Duration::ZERO, ..QUICK };
    let settings = [Setting { batch: 1, tokens: 512, group: 4 }];
    let outcome = time::run(driver.as_mut(), &Template::made_up(1), &settings, &late, &|_| {}).unwrap();
    let left = outcome.records.iter().find_map(|r| match r {
        Record::Left { name, reason } => Some((name.as_str(), reason.as_str())),
        _ => None,
    });
    assert_eq!(left, Some(("batch 1, 512 tokens, group 4", "no time left of 0 s")));
    assert!(time::text(&outcome.records).contains("not timed: batch 1"));
}

#[test]
fn a_device_without_a_clock_gives_no_timings() {
    let mut driver = Emulated::new(EmulatedOptions::default()).unwrap();
    let settings = [Setting { batch: 1, tokens: 512, group: 4 }];
    let outcome = time::run(&mut driver, &Template::made_up(1), &settings, &QUICK, &|_| {}).unwrap();
    assert!(!outcome.timed && outcome.records.is_empty());
}

#[test]
fn sequences_of_a_rig_are_alike_and_give_what_the_toolkit_gives() {
    use psa::{Budget, Device, Dtype, Mirror, Policy, Shape};
    use psa_gpu::time::rig::{Arm, HEAD_DIM, KV_HEADS, Rig};
    let template = Template::made_up(3);
    let setting = Setting { batch: 2, tokens: 512, group: 4 };
    let mut driver = Emulated::new(EmulatedOptions::default()).unwrap();
    let mut rig = Rig::new(&mut driver, setting, &template).unwrap();
    for launch in rig.step(Arm::TopK).unwrap() {
        driver.launch(&launch).unwrap();
    }
    let out = rig.out(&mut driver).unwrap();
    let (first, second) = out.split_at(out.len() / 2);
    assert_eq!(first, second);
    // The same sequence in a cache of the toolkit's own.
    let shape = Shape {
        layers: 1,
        q_heads: 4 * KV_HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        dtype: Dtype::Bf16,
    };
    let elements = 512 * KV_HEADS * HEAD_DIM;
    let sequence = psa_tests::Sequence {
        tokens: 512,
        k: psa_tests::Tensor::Bf16(template.k[..elements].to_vec()),
        v: psa_tests::Tensor::Bf16(template.v[..elements].to_vec()),
        q: psa_tests::Tensor::Bf16(template.queries(1, 4)),
    };
    let workload = psa_tests::Workload { shape, sequences: vec![sequence] };
    let policy = Policy::TopK(Budget::Fraction(0.1));
    let own = psa_tests::run(&Device::emulator(), &workload, Mirror::Nested, policy).unwrap();
    assert_eq!(own.out[0], first);
    rig.release(&mut driver).unwrap();
}
