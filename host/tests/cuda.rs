//! The CUDA driver against a fake libcuda: what is called, in which order, with which arguments, and what
//! happens when a call fails. The fake executes no kernel, so that no result is compared here.
//!
//! Trap: library and contexts belong to the process; the tests take turns.

#![cfg(target_os = "linux")]

mod common;
#[path = "../../cuda-shim/tests/fake/mod.rs"]
mod fake;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use common::Batch;
use fake::{Controls, Fake};
use psa::driver::cuda::{CubinCache, Cuda, CudaDevice, Origin, Updated};
use psa::driver::{Driver, DriverError, Emulated, EmulatedOptions, StreamId, Streams};
use psa::pipeline::{DecodePipeline, PipelineConfig};
use psa::{DecodePlan, Device, Dtype, Error, Mirror, Policy, Shape};
use psa_codegen::{ArgValue, ContractError, DeviceLimits, KernelDescriptor, Launch, ParamType, RawLaunch};

/// The fake, for one test at a time.
struct Turn {
    controls: Controls,
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    fn take(settings: &str) -> Turn {
        static TURN: Mutex<()> = Mutex::new(());
        static LIBRARY: OnceLock<Controls> = OnceLock::new();
        // A failed test must not fail the others.
        let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Loaded before its file is removed; the driver then has the same one.
        let controls = *LIBRARY.get_or_init(|| {
            let fake = Fake::build("in-process", &[]);
            psa_cuda_shim::use_library(fake.library()).unwrap();
            let controls = fake.controls();
            assert!(matches!(psa_cuda_shim::status(), psa_cuda_shim::Status::Loaded { .. }));
            controls
        });
        controls.configure(settings);
        Turn { controls, _turn: turn }
    }

    fn open(&self) -> CudaDevice {
        CudaDevice::open(0, &CubinCache::Off).unwrap()
    }

    fn driver(&self) -> Cuda {
        self.open().driver().unwrap()
    }

    fn count(&self, call: &str) -> usize {
        self.controls.calls(call).len()
    }
}

fn kernel(name: &str) -> &'static KernelDescriptor {
    kernels_gpu::kernels().into_iter().find(|kernel| kernel.name == name).unwrap()
}

/// A launch whose pointers are all `address`, and whose numbers are 1.
fn launch(name: &str, address: u64) -> Launch {
    let kernel = kernel(name);
    let value = |ty: ParamType| match ty {
        ParamType::U32 => ArgValue::U32(1),
        ParamType::I32 => ArgValue::I32(1),
        ParamType::U64 => ArgValue::U64(1),
        ParamType::I64 => ArgValue::I64(1),
        ParamType::F32 => ArgValue::F32(1.0),
        ParamType::F64 => ArgValue::F64(1.0),
        ParamType::ConstPtr(_) | ParamType::MutPtr(_) => ArgValue::Ptr(address),
    };
    raw_launch(RawLaunch::new(kernel, [1; 3], kernel.params.iter().map(|param| value(param.ty)).collect()))
}

fn raw_launch(raw: RawLaunch) -> Launch {
    // SAFETY: the fake executes nothing.
    unsafe { Launch::from_raw(raw) }
}

const SMALL: &str = "plan_identity";
const LARGE: &str = "plan_n8192";

/// The emulated driver, and its launches as the fake writes them.
struct Recording {
    driver: Emulated,
    /// Address to bytes and number of the allocation.
    live: BTreeMap<u64, (usize, usize)>,
    made: usize,
    launches: Arc<Mutex<Vec<String>>>,
}

impl Recording {
    fn show(&self, launch: &Launch) -> String {
        let argument = |arg: &ArgValue| {
            let bytes = arg.bytes();
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(&bytes);
            let value = u64::from_le_bytes(whole);
            let inside = self.live.range(..=value).next_back();
            match inside.filter(|(start, (size, _))| bytes.len() == 8 && value < *start + *size as u64) {
                Some((start, (_, number))) => format!(" @{number}+{}", value - start),
                None => format!(" {value}"),
            }
        };
        let spaced = |[x, y, z]: [u32; 3]| format!("{x} {y} {z}");
        format!(
            "launch {} grid {} block {} shared {} args{}",
            launch.kernel.name,
            spaced(launch.grid),
            spaced(launch.block),
            launch.shared_bytes,
            launch.args.iter().map(argument).collect::<String>()
        )
    }
}

impl Driver for Recording {
    fn name(&self) -> String {
        self.driver.name()
    }

    fn alloc(&mut self, bytes: usize, what: &str) -> Result<u64, DriverError> {
        let address = self.driver.alloc(bytes, what)?;
        self.live.insert(address, (bytes, self.made));
        self.made += 1;
        Ok(address)
    }

    fn free(&mut self, address: u64) -> Result<(), DriverError> {
        self.live.remove(&address);
        self.driver.free(address)
    }

    fn upload(&mut self, address: u64, data: &[u8]) -> Result<(), DriverError> {
        self.driver.upload(address, data)
    }

    fn download(&mut self, address: u64, data: &mut [u8]) -> Result<(), DriverError> {
        self.driver.download(address, data)
    }

    fn limits(&self) -> DeviceLimits {
        self.driver.limits()
    }

    fn launch(&mut self, launch: &Launch) -> Result<(), DriverError> {
        self.launches.lock().unwrap().push(self.show(launch));
        self.driver.launch(launch)
    }
}

/// Appends and one decode step of a batch, by every kind of plan.
fn steps(device: &Device, dtype: Dtype) {
    for (policy, mirror) in
        [(Policy::Dense, Mirror::Bits2), (Policy::Progressive { mass: 0.9 }, Mirror::Bits4)]
    {
        let shape = Shape { layers: 1, q_heads: 4, kv_heads: 2, head_dim: 64, dtype };
        let batch = Batch::random(shape, &[130, 200], 5);
        let (mut cache, sequences) = batch.cache(device, mirror);
        let mut plan = DecodePlan::new(&cache, &sequences, policy).unwrap();
        let mut out = vec![0.0; 2 * shape.query_elements()];
        plan.attend(&mut cache, 0, batch.queries(&[0, 1]).rows(), &mut out).unwrap();
    }
}

#[test]
fn a_decode_step_makes_the_launches_of_the_emulated_driver() {
    let turn = Turn::take("");
    for dtype in [Dtype::Bf16, Dtype::F16] {
        let launches = Arc::new(Mutex::new(Vec::new()));
        let recorded = launches.clone();
        let emulator = Device::with_driver("recording", move || {
            let driver = Emulated::new(EmulatedOptions::default())?;
            let launches = recorded.clone();
            Ok(Box::new(Recording { driver, live: BTreeMap::new(), made: 0, launches }) as Box<dyn Driver>)
        });
        steps(&emulator, dtype);
        let expected = launches.lock().unwrap().clone();
        // Two caches: two appends, attend, merge and plan each, and score where blocks are ranked.
        assert_eq!(expected.len(), 2 * (2 + 3) + 1);
        assert!(expected.iter().all(|line| line.contains(" @")), "{expected:?}");

        turn.controls.configure("");
        let cuda = turn.open();
        // Each cache counts its allocations from 0; the fake counts on.
        let mut found = Vec::new();
        steps(&cuda.device(), dtype);
        let mut base = 0;
        let mut made = 0;
        for line in turn.controls.log() {
            if line.starts_with("cuStreamCreateWithPriority ") {
                base = made;
            } else if line.starts_with("cuMemAllocAsync ") {
                made += 1;
            } else if line.starts_with("launch ") {
                let word = |word: &str| match word.strip_prefix('@').and_then(|rest| rest.split_once('+')) {
                    Some((number, offset)) => {
                        format!("@{}+{offset}", number.parse::<usize>().unwrap() - base)
                    }
                    None => word.to_owned(),
                };
                found.push(line.split(' ').map(word).collect::<Vec<_>>().join(" "));
            }
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn everything_is_given_back_at_the_end() {
    for settings in ["", "pools=0"] {
        let turn = Turn::take(settings);
        let before = turn.controls.live();
        steps(&turn.open().device(), Dtype::F16);
        assert_eq!(turn.controls.live(), before, "{settings}: {:?}", turn.controls.log());
        let (asynchronous, plain) = (turn.count("cuMemAllocAsync"), turn.count("cuMemAlloc_v2"));
        assert_eq!((asynchronous > 0, plain > 0), (settings.is_empty(), !settings.is_empty()));
    }
}

#[test]
fn shared_memory_above_48_kib_is_allowed_once_a_kernel() {
    let turn = Turn::take("");
    let mut driver = turn.driver();
    let address = driver.alloc(4096, "test").unwrap();
    assert_eq!(kernel(LARGE).shared_bytes, 65_600);
    // The fake refuses the launch without the attribute.
    driver.launch(&launch(LARGE, address)).unwrap();
    driver.launch(&launch(LARGE, address)).unwrap();
    driver.launch(&launch(SMALL, address)).unwrap();
    assert_eq!(turn.controls.calls("cuFuncSetAttribute"), ["cuFuncSetAttribute plan_n8192 8 65600"]);
    assert_eq!(turn.count("launch"), 3);
    static HUGE: LazyLock<KernelDescriptor> =
        LazyLock::new(|| KernelDescriptor { shared_bytes: 300_000, ..*kernel(LARGE) });
    let raw = launch(LARGE, address).into_raw();
    let error =
        driver.launch(&raw_launch(RawLaunch { kernel: &HUGE, shared_bytes: 300_000, ..raw })).unwrap_err();
    assert!(
        matches!(error, DriverError::Contract(ContractError::Device { needed: 300_000, found: 101_376, .. })),
        "{error}"
    );
}

#[test]
fn arguments_that_are_not_the_kernels_never_reach_the_driver() {
    let turn = Turn::take("");
    let mut driver = turn.driver();
    let mut short = launch(SMALL, 0).into_raw();
    short.args.pop();
    let mut wide = launch(SMALL, 0).into_raw();
    *wide.args.last_mut().unwrap() = ArgValue::U64(1);
    let error = driver.launch(&raw_launch(short)).unwrap_err();
    assert!(
        matches!(error, DriverError::Contract(ContractError::Arity { expected: 8, found: 7, .. })),
        "{error}"
    );
    let error = driver.launch(&raw_launch(wide)).unwrap_err();
    assert!(
        matches!(error, DriverError::Contract(ContractError::Type { param: "max_blocks", .. })),
        "{error}"
    );
    assert_eq!(turn.count("launch"), 0);
}

#[test]
fn a_refused_launch_names_kernel_grid_block_shared_memory_and_arguments() {
    let turn = Turn::take("fail=cuLaunchKernel:701@1");
    let mut driver = turn.driver();
    let address = driver.alloc(4096, "test").unwrap();
    let error = driver.launch(&launch(SMALL, address)).unwrap_err();
    let DriverError::Launch { launch: text, detail } = &error else { panic!("{error:?}") };
    assert!(detail.contains("cuLaunchKernel: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (701)"), "{detail}");
    assert!(text.starts_with("kernel plan_identity grid [1, 1, 1] block ["), "{text}");
    let first = kernel(SMALL).params.iter().find(|param| param.ty.is_pointer()).unwrap().name;
    assert!(text.contains(" shared ") && text.contains(&format!("{first}={address:#x}")), "{text}");
    // Not sticky: the device goes on.
    driver.launch(&launch(SMALL, address)).unwrap();
}

#[test]
fn after_a_sticky_error_every_call_says_lost_and_nothing_is_touched_any_more() {
    // An illegal address; a code without meaning that stays.
    for code in [700, 4242] {
        let turn = Turn::take(&format!("fail=cuStreamSynchronize:{code}@1!"));
        let mut driver = turn.driver();
        let pinned = driver.pinned(64, true).unwrap();
        let event = driver.record().unwrap();
        let address = driver.alloc(4096, "test").unwrap();
        let graph = driver.capture(&[launch(SMALL, address)]).unwrap();
        driver.launch(&launch(SMALL, address)).unwrap();
        let first = driver.download(address, &mut [0; 16]).unwrap_err();
        let DriverError::Lost { device, detail } = &first else { panic!("{first:?}") };
        assert_eq!(device, "cuda:0 (Fake GPU 0)");
        let name = if code == 700 { "ILLEGAL_ADDRESS (700)" } else { "OF_TOMORROW (4242)" };
        assert!(detail.contains(&format!("cuStreamSynchronize: CUDA_ERROR_{name}")), "{detail}");
        // The launch that may have done it, with its arguments.
        assert!(detail.contains("kernel plan_identity grid [1, 1, 1]"), "{detail}");
        assert!(detail.contains(&format!("{address:#x}")), "{detail}");
        let calls = turn.controls.log().len();
        assert_eq!(driver.alloc(16, "more"), Err(first.clone()));
        assert_eq!(driver.free(address), Err(first.clone()));
        assert_eq!(driver.upload(address, &[0; 16]), Err(first.clone()));
        assert_eq!(driver.download(address, &mut [0; 16]), Err(first.clone()));
        assert_eq!(driver.launch(&launch(SMALL, address)), Err(first.clone()));
        assert_eq!(driver.replay(&graph), Err(first.clone()));
        assert_eq!(driver.wait(), Err(first.clone()));
        drop((pinned, event, graph));
        drop(driver);
        // Not one call but the end of the context.
        assert_eq!(turn.controls.log()[calls..], ["cuDevicePrimaryCtxRelease_v2 0"]);
        // Nobody holds the context: the next one is new.
        turn.controls.configure("");
        turn.driver().alloc(16, "again").unwrap();
    }
}

#[test]
fn a_kernel_that_never_ends_does_not_hold_up_the_drop() {
    let turn = Turn::take("fail=cuStreamQuery:600");
    let mut driver = turn.driver();
    let address = driver.alloc(4096, "test").unwrap();
    driver.launch(&launch(SMALL, address)).unwrap();
    let started = Instant::now();
    drop(driver);
    assert!((1..20).contains(&started.elapsed().as_secs()), "it waits a little: {:?}", started.elapsed());
    // The kernel may still use all of it.
    for call in ["cuMemFreeAsync", "cuMemFreeHost", "cuStreamDestroy_v2", "cuDevicePrimaryCtxRelease_v2"] {
        assert_eq!(turn.count(call), 0, "{call}");
    }
}

#[test]
fn an_unknown_error_of_one_call_does_not_lose_the_device() {
    let turn = Turn::take("fail=cuMemAllocAsync:4242@1");
    let mut driver = turn.driver();
    let error = driver.alloc(16, "test").unwrap_err();
    assert!(matches!(error, DriverError::OutOfMemory { .. }), "{error:?}");
    driver.alloc(16, "test").unwrap();
}

#[test]
fn a_cache_on_a_lost_device_says_so_at_every_call() {
    let turn = Turn::take("");
    let device = turn.open().device();
    let shape = Shape { layers: 1, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
    let batch = Batch::random(shape, &[40], 3);
    let (mut cache, sequences) = batch.cache(&device, Mirror::Bits2);
    turn.controls.configure("fail=cuMemcpyDtoHAsync_v2:719!");
    let mut plan = DecodePlan::new(&cache, &sequences, Policy::Dense).unwrap();
    let mut out = vec![0.0; shape.query_elements()];
    for _ in 0..2 {
        let error = plan.attend(&mut cache, 0, batch.q[0].rows(), &mut out).unwrap_err();
        let Error::DeviceLost { detail, .. } = &error else { panic!("{error:?}") };
        assert!(
            detail.contains("CUDA_ERROR_LAUNCH_FAILED (719)") && detail.contains("kernel merge_"),
            "{detail}"
        );
        assert!(detail.contains("restart the program"), "{detail}");
    }
    drop(cache);
    // The context is shared: a second cache of the same opening is lost as well.
    let error = psa::KvCache::new(&device, shape, batch.config(Mirror::Bits2)).unwrap_err();
    assert!(matches!(error, Error::DeviceLost { .. }), "{error:?}");
}

#[test]
fn a_full_device_says_what_was_wanted_and_what_is_free_and_goes_on() {
    let turn = Turn::take("memory=9000000");
    let mut driver = turn.driver();
    let error = driver.alloc(100_000_000, "arena").unwrap_err();
    let text = error.to_string();
    assert!(text.contains("cannot allocate 100000000 bytes for arena on cuda:0 (Fake GPU 0)"), "{text}");
    assert!(text.contains("CUDA_ERROR_OUT_OF_MEMORY (2), out of memory, "), "{text}");
    assert!(text.contains(" of 9000000 bytes free; use a smaller cache"), "{text}");
    assert_eq!(turn.count("cuMemPoolTrimTo"), 1, "freed memory was looked for");
    assert_eq!(turn.count("cuMemAllocAsync"), 2, "and then it was tried again");
    driver.alloc(1000, "less").unwrap();
}

#[test]
fn addresses_outside_the_allocations_never_reach_the_driver() {
    let turn = Turn::take("");
    let mut driver = turn.driver();
    let address = driver.alloc(100, "test").unwrap();
    driver.upload(address + 90, &[1; 10]).unwrap();
    let copies = turn.count("cuMemcpyHtoDAsync_v2");
    for (at, bytes) in [(address + 90, 11), (address - 1, 1), (address + 101, 0), (0, 1), (u64::MAX, 1)] {
        let error = driver.upload(at, &vec![0; bytes]).unwrap_err();
        assert!(matches!(error, DriverError::Memory { call: "upload", .. }), "{error:?}");
        let error = driver.download(at, &mut vec![0; bytes]).unwrap_err();
        assert!(matches!(error, DriverError::Memory { call: "download", .. }), "{error:?}");
    }
    assert_eq!(turn.count("cuMemcpyHtoDAsync_v2"), copies);
    driver.free(address).unwrap();
    assert!(matches!(driver.free(address), Err(DriverError::Memory { call: "free", .. })));
    assert!(matches!(driver.upload(address, &[1]), Err(DriverError::Memory { .. })));
}

#[test]
fn an_upload_larger_than_the_staging_memory_arrives_whole() {
    let turn = Turn::take("");
    let mut driver = turn.driver();
    // Twice around the ring, and not a multiple of anything.
    let data: Vec<u8> = (0..9_000_001u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let address = driver.alloc(data.len() + 7, "test").unwrap();
    driver.upload(address + 7, &data).unwrap();
    let mut back = vec![0; data.len()];
    driver.download(address + 7, &mut back).unwrap();
    assert!(back == data);
    // Chunks that come around again were waited for.
    assert!(turn.count("cuEventSynchronize") >= 4);
}

#[test]
fn a_graph_runs_what_was_captured_and_takes_new_arguments_in_place() {
    let turn = Turn::take("");
    let before = turn.controls.live();
    let mut driver = turn.driver();
    let (a, b) = (driver.alloc(4096, "a").unwrap(), driver.alloc(4096, "b").unwrap());
    let both = |address| [launch(LARGE, address), launch(SMALL, address)];
    let shown =
        |verb: &str| turn.controls.calls(verb).iter().map(|l| l[verb.len()..].to_owned()).collect::<Vec<_>>();
    let mut graph = driver.capture(&both(a)).unwrap();
    assert_eq!(turn.count("launch"), 0, "nothing runs during the capture");
    driver.replay(&graph).unwrap();
    driver.replay(&graph).unwrap();
    let captured = shown("capture");
    assert_eq!(captured.len(), 2);
    assert_eq!(shown("replay"), [&captured[..], &captured[..]].concat());

    assert_eq!(driver.update(&mut graph, &both(b)), Ok(Updated::InPlace));
    assert_eq!(turn.count("cuGraphInstantiateWithFlags"), 1);
    driver.replay(&graph).unwrap();
    assert_eq!(shown("replay")[4..], shown("capture")[2..]);
    assert!(shown("replay")[4].contains(" @1+0") && !shown("replay")[4].contains(" @0+0"));

    let other = [launch(SMALL, b), launch(SMALL, a)];
    assert_eq!(driver.update(&mut graph, &other), Ok(Updated::Rebuilt));
    assert_eq!(graph.launches(), other);
    driver.replay(&graph).unwrap();
    assert_eq!(shown("replay")[6..], shown("capture")[4..]);
    drop(graph);
    drop(driver);
    assert_eq!(turn.controls.live(), before);
}

#[test]
fn a_launch_that_fails_in_a_capture_leaves_the_stream_usable() {
    let turn = Turn::take("fail=cuLaunchKernel:1@2");
    let mut driver = turn.driver();
    let address = driver.alloc(4096, "test").unwrap();
    let both = [launch(SMALL, address), launch(LARGE, address)];
    let error = driver.capture(&both).err().unwrap();
    assert!(error.to_string().contains("kernel plan_n8192"), "{error}");
    driver.wait().unwrap();
    driver.launch(&both[0]).unwrap();
    assert_eq!(turn.count("launch"), 1, "launched, not captured");
    driver.capture(&both).unwrap();
}

#[test]
fn a_graph_is_refused_on_another_opening() {
    let turn = Turn::take("devices=2");
    let mut first = turn.driver();
    let mut second = CudaDevice::open(1, &CubinCache::Off).unwrap().driver().unwrap();
    let graph = first.capture(&[launch(SMALL, 0)]).unwrap();
    let error = second.replay(&graph).unwrap_err();
    assert!(error.to_string().contains("another opening"), "{error}");
    assert_eq!(turn.count("cuGraphLaunch"), 0);
}

#[test]
fn time_between_events_is_the_devices() {
    let turn = Turn::take("");
    let mut driver = turn.driver();
    let address = driver.alloc(4096, "test").unwrap();
    let start = driver.record().unwrap();
    for _ in 0..3 {
        driver.launch(&launch(SMALL, address)).unwrap();
    }
    let end = driver.record().unwrap();
    // A launch takes half a millisecond on the fake.
    assert_eq!(driver.elapsed(&start, &end), Ok(Duration::from_micros(1500)));
    let mut other = turn.driver();
    other.wait_for(&end).unwrap();
    assert_eq!(turn.count("cuStreamWaitEvent"), 1);
}

#[test]
fn pinned_memory_is_readable_writable_and_mapped_where_asked() {
    let turn = Turn::take("");
    let mut driver = turn.driver();
    let mut mapped = driver.pinned(64, true).unwrap();
    assert!(mapped.device_address().is_some_and(|address| address != 0));
    assert_eq!(driver.pinned(64, false).unwrap().device_address(), None);
    assert!(
        mapped.write(60, &[1, 2, 3, 4]) && !mapped.write(61, &[9; 4]) && !mapped.write(usize::MAX, &[9; 4])
    );
    let mut back = [0; 5];
    assert!(mapped.read(59, &mut back) && !mapped.read(60, &mut back));
    assert_eq!(back, [0, 1, 2, 3, 4]);
    assert_eq!((mapped.load(15), mapped.load(16)), (Some(0x0403_0201), None));
    // Portable and mapped; portable.
    let flags: Vec<_> =
        turn.controls.calls("cuMemHostAlloc").into_iter().filter(|l| l.contains(" 64 ")).collect();
    assert_eq!(flags, ["cuMemHostAlloc 64 3", "cuMemHostAlloc 64 1"]);
}

#[test]
fn a_cache_can_move_to_another_thread() {
    let turn = Turn::take("");
    let before = turn.controls.live();
    let device = turn.open().device();
    let shape = Shape { layers: 1, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::Bf16 };
    let batch = Batch::random(shape, &[40], 3);
    let (mut cache, sequences) = batch.cache(&device, Mirror::Bits2);
    // The fake refuses calls on a thread without a current context.
    let batch = &batch;
    let thread = |mut cache: psa::KvCache| {
        let mut plan = DecodePlan::new(&cache, &sequences, Policy::Dense).unwrap();
        plan.attend(&mut cache, 0, batch.q[0].rows(), &mut vec![0.0; shape.query_elements()]).unwrap();
        cache
    };
    cache = std::thread::scope(|scope| scope.spawn(|| thread(cache)).join().unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || drop(cache));
    });
    drop(device);
    assert_eq!(turn.controls.live(), before);
}

#[test]
fn every_device_has_its_own_context() {
    let turn = Turn::take("devices=3");
    let device = CudaDevice::open(2, &CubinCache::Off).unwrap();
    assert_eq!((device.gpu().index, device.gpu().name.as_str()), (2, "Fake GPU 2"));
    assert_eq!(turn.controls.calls("cuDevicePrimaryCtxRetain"), ["cuDevicePrimaryCtxRetain 2"]);
    let error = CudaDevice::open(3, &CubinCache::Off).err().unwrap();
    assert_eq!(error.to_string(), "no GPU: there is no GPU 3: this machine has 3, numbered from 0");
    drop(device);
    assert_eq!(turn.controls.calls("cuDevicePrimaryCtxRelease_v2"), ["cuDevicePrimaryCtxRelease_v2 2"]);
}

#[test]
fn ptx_that_does_not_compile_is_an_error_with_the_compilers_log() {
    let turn = Turn::take("fail=cuLinkAddData_v2:218");
    let before = turn.controls.live();
    let error = CudaDevice::open(0, &CubinCache::Off).err().unwrap().to_string();
    assert!(error.contains("the PTX module does not load on cuda:0 (Fake GPU 0)"), "{error}");
    assert!(
        error.contains("cuLinkAddData_v2: CUDA_ERROR_INVALID_PTX (218), a PTX JIT compilation failed"),
        "{error}"
    );
    assert!(error.contains("\nptxas psa_kernels.ptx, line 7; error : the fake does not like it"), "{error}");
    assert_eq!(turn.controls.live(), before);
}

#[test]
fn compiled_kernels_are_kept_and_a_damaged_entry_is_made_anew() {
    let turn = Turn::take("");
    let folder = Fake::empty("cubins");
    let cache = CubinCache::Folder(folder.folder().join("made").join("here"));
    let open = || CudaDevice::open(0, &cache).unwrap().origin();
    let entries = || -> Vec<_> {
        let CubinCache::Folder(folder) = &cache else { unreachable!() };
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    assert_eq!(open(), Origin::Compiled);
    assert_eq!(entries().len(), 1, "no draft is left: {:?}", entries());
    turn.controls.configure("");
    assert_eq!(open(), Origin::Cache);
    assert_eq!(turn.count("cuLinkCreate_v2"), 0);

    let entry = entries().remove(0);
    let good = std::fs::read(&entry).unwrap();
    let damaged = |bytes: &[u8]| {
        std::fs::write(&entry, bytes).unwrap();
        assert_eq!(open(), Origin::Compiled);
        assert_eq!(std::fs::read(&entry).unwrap(), good, "the entry was made anew");
        assert_eq!(open(), Origin::Cache);
    };
    damaged(b"");
    damaged(&good[..good.len() / 2]);
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    damaged(&flipped);

    // Whole, and still not to the driver's taste.
    turn.controls.configure("fail=cuModuleLoadDataEx:209@1");
    assert_eq!(open(), Origin::Compiled);
    // Another driver compiles for itself.
    turn.controls.configure("version=12050");
    assert_eq!(open(), Origin::Compiled);
    assert_eq!(entries().len(), 2);
}

#[test]
fn a_cache_that_cannot_be_written_is_no_error() {
    let _turn = Turn::take("");
    let cache = CubinCache::Folder(Path::new("/dev/null/cubin").to_owned());
    assert_eq!(CudaDevice::open(0, &cache).unwrap().origin(), Origin::Compiled);
}

#[test]
fn a_resident_pipeline_step_waits_for_nothing_allocates_nothing_and_is_one_graph() {
    let turn = Turn::take("");
    let shape = Shape { layers: 3, q_heads: 4, kv_heads: 2, head_dim: 64, dtype: Dtype::F16 };
    let config = PipelineConfig { max_tokens: 200, ..PipelineConfig::default() };
    let policy = Policy::Progressive { mass: 0.95 };
    let mut pipeline = DecodePipeline::new(Box::new(turn.driver()), shape, policy, config).unwrap();
    let zeros = |n: usize| vec![half::f16::ZERO; n];
    let prompt = zeros(3 * 70 * 2 * 64);
    pipeline.prefill(0, (&prompt).into(), (&prompt).into()).unwrap();
    let (q, kv) = (zeros(3 * 4 * 64), zeros(3 * 2 * 64));
    // The first step may load kernels.
    pipeline.step((&q).into(), (&kv).into(), (&kv).into()).unwrap();
    let waits = ["cuStreamSynchronize", "cuEventSynchronize", "cuStreamQuery", "cuMemcpyDtoHAsync_v2"];
    let allocations = ["cuMemAllocAsync", "cuMemAlloc_v2", "cuMemHostAlloc", "cuEventCreate"];
    let idle = || waits.iter().chain(&allocations).map(|call| turn.count(call)).sum::<usize>();
    let (before, launches) = (idle(), turn.count("launch"));
    for _ in 0..3 {
        pipeline.step((&q).into(), (&kv).into(), (&kv).into()).unwrap();
    }
    assert_eq!(idle(), before, "no wait and no allocation");
    // append, score, refine, plan, attend, merge.
    assert_eq!(turn.count("launch") - launches, 3 * 3 * 6);

    pipeline.capture().unwrap();
    let before = idle();
    pipeline.step((&q).into(), (&kv).into(), (&kv).into()).unwrap();
    assert_eq!(idle(), before);
    assert_eq!(turn.count("cuGraphLaunch"), 1);
    pipeline.results().unwrap();
    assert!(idle() > before, "reading results waits, so waits are counted");
    drop(pipeline);
    assert_eq!(turn.count("cuMemFreeHost"), turn.count("cuMemHostAlloc"), "pinned memory is given back");
}

#[test]
fn flags_events_and_pinned_copies_reach_the_driver() {
    let turn = Turn::take("");
    let mut d = turn.driver();
    let copies = d.stream("copies").unwrap();
    let event = d.event().unwrap();
    let host = Streams::pinned(&mut d, 64, "host").unwrap().address();
    let a = d.alloc(64, "a").unwrap();
    d.trace(true).unwrap();
    d.write_pinned(host, &[7; 32]).unwrap();
    d.copy_on(copies, a, host, 32).unwrap();
    Streams::record(&mut d, event, copies).unwrap();
    d.wait_event(StreamId::MAIN, event, "copied").unwrap();
    d.copy_on(StreamId::MAIN, host + 32, a, 32).unwrap();
    d.signal(StreamId::MAIN, host, 9).unwrap();
    assert_eq!(d.peek(host).unwrap(), 9, "the fake runs at once");
    d.synchronize(copies).unwrap();
    d.synchronize(StreamId::MAIN).unwrap();
    let mut back = [0; 32];
    d.read_pinned(host + 32, &mut back).unwrap();
    assert_eq!(back, [7; 32]);
    assert_eq!((turn.count("cuMemcpyHtoDAsync_v2"), turn.count("cuStreamWaitEvent")), (1, 1));
    let counters = d.stream_counters();
    assert_eq!((counters.host_syncs, counters.copies, counters.copied_bytes), (2, 2, 64));
    let timeline = d.timeline().unwrap();
    assert!(!timeline.modelled);
    assert_eq!(timeline.spans.len(), 3, "two copies and a wait: {timeline:?}");
    assert!(d.copy_on(copies, a, host + 60, 32).is_err(), "beyond the pinned memory");
    assert!(d.copy_on(StreamId(5), a, host, 4).is_err() && d.peek(a).is_err());
    let free = turn.count("cuMemFreeHost");
    d.free(host).unwrap();
    assert_eq!(turn.count("cuMemFreeHost"), free + 1);
}
