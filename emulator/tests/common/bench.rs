//! Buffers and launches of a module with every checker on, for tests with whole kernels. All is done
//! twice, on one thread and on three, and must come out the same.

use ptx_emulator::{Arg, Device, DevicePtr, LaunchConfig, Module, Options, Report};

/// Schedules every kernel is run under.
pub const SEEDS: [u64; 4] = [0, 1, 2, 77];

/// A module and a device of its own.
pub struct Bench {
    module: Module,
    device: Device,
    /// Does the same on several threads.
    twin: Device,
}

/// Plain numbers as bytes.
pub trait Number: Copy {
    fn put(self, to: &mut Vec<u8>);
    fn get(from: &[u8]) -> Self;
}

macro_rules! numbers {
    ($($t:ty)*) => { $(impl Number for $t {
        fn put(self, to: &mut Vec<u8>) { to.extend(self.to_le_bytes()) }
        fn get(from: &[u8]) -> Self { <$t>::from_le_bytes(from.try_into().unwrap()) }
    })* };
}
numbers!(u8 i8 u16 u32 i32 f32 u64 i64 f64);

/// A buffer or a 32-bit number.
#[derive(Clone, Copy)]
pub enum Val {
    Buffer(DevicePtr),
    Word(u32),
}

pub trait IntoArg {
    fn into_arg(self) -> Val;
}
impl IntoArg for u32 {
    fn into_arg(self) -> Val {
        Val::Word(self)
    }
}

impl Bench {
    pub fn new(ptx: &str, seed: u64) -> Bench {
        let module = Module::parse(ptx).unwrap_or_else(|e| panic!("{e}"));
        let device = |threads| Device::new(Options { seed, threads, ..Options::default() });
        Bench { module, device: device(1), twin: device(3) }
    }

    /// Ends launches after that many warp instructions.
    pub fn max_steps(&mut self, steps: u64) {
        self.device.options_mut().max_steps = steps;
        self.twin.options_mut().max_steps = steps;
    }

    pub fn input<T: Number>(&mut self, data: &[T]) -> Val {
        let mut bytes = Vec::new();
        data.iter().for_each(|v| v.put(&mut bytes));
        let p = self.device.alloc_init(&bytes, "input").unwrap();
        assert_eq!(p, self.twin.alloc_init(&bytes, "input").unwrap());
        Val::Buffer(p)
    }

    pub fn empty(&mut self, bytes: u64) -> Val {
        let p = self.device.alloc(bytes, "output").unwrap();
        assert_eq!(p, self.twin.alloc(bytes, "output").unwrap());
        Val::Buffer(p)
    }

    pub fn output<T: Number>(&self, from: Val, n: usize) -> Vec<T> {
        let Val::Buffer(p) = from else { panic!("no buffer") };
        let size = std::mem::size_of::<T>();
        let mut out = vec![0; n * size];
        self.device.copy_from(p, &mut out).unwrap();
        let mut twin = vec![0; n * size];
        self.twin.copy_from(p, &mut twin).unwrap();
        assert!(out == twin, "memory differs after 1 and after 3 threads");
        out.chunks_exact(size).map(T::get).collect()
    }

    /// Launches; the report may have findings.
    pub fn launch(&mut self, kernel: &str, grid: [u32; 3], block: [u32; 3], args: &[Val]) -> Report {
        let args: Vec<Arg> = args
            .iter()
            .map(|a| match *a {
                Val::Buffer(p) => Arg::Ptr(p),
                Val::Word(v) => Arg::U32(v),
            })
            .collect();
        let config = LaunchConfig { grid, block, shared_bytes: 0 };
        let on = |d: &mut Device| {
            d.launch(&self.module, kernel, config, &args).unwrap_or_else(|e| panic!("{kernel}: {e}"))
        };
        let (serial, spread) = (on(&mut self.device), on(&mut self.twin));
        assert_eq!(super::said(&serial), super::said(&spread), "report of 1 and of 3 threads");
        serial
    }

    /// Launches what must be clean.
    #[track_caller]
    pub fn run(&mut self, kernel: &str, grid: [u32; 3], block: [u32; 3], args: &[Val]) -> Report {
        let report = self.launch(kernel, grid, block, args);
        let seed = self.device.options().seed;
        assert!(report.is_clean(), "{kernel}, seed {seed}: {:#?}", report.findings);
        report
    }
}

/// splitmix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }
}

/// The error function by its series, and 1 beyond where that is exact in single precision.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}
